"""The embedded set of clips: a handwritten digit (a real pen stroke, from scikit-learn) on a still, textured
ground, and the class is how it moves.

A sample has its frames, as numbered PNGs or as one mp4, and a `cls`. Where a digit is, how it is turned and
how large it is are four numbers on a circle of length 1, and a motion adds a constant to one of them in each
frame. They start anywhere with the same chance, so each frame by itself looks the same for all classes: what
moves out on one side comes in on the other, and what has grown to the largest size begins anew at the
smallest. Train and val draw from disjoint digit images. Clip i of a split is a function of (seed, split, i,
size, frames) alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.layouts.picture_files import encoded
from pipeline.data.make.digits.scenes import Rng, drawn_ink, pick, strokes, texture
from pipeline.data.make.write import ShardJob, jobs_of
from pipeline.data.members.video import encode_video
from pipeline.errors import ConfigError
from pipeline.rng import seed_of

MOTIONS = ("still", "right", "left", "down", "up", "clockwise", "anticlockwise", "grows", "shrinks")
"""Class names."""
CIRCLES = ("across", "down", "turn", "size")
_MOVES = {
    "right": (0, 1),
    "left": (0, -1),
    "down": (1, 1),
    "up": (1, -1),
    "clockwise": (2, 1),
    "anticlockwise": (2, -1),
    "grows": (3, 1),
    "shrinks": (3, -1),
}
"""Maps a motion to the circle on which it moves, and the direction."""
SPEEDS = ((0.06, 0.11), (0.06, 0.11), (0.05, 0.09), (0.09, 0.13))
"""Range of the way in a frame, as a part of the circle."""
HEIGHTS = (0.35, 0.7)
"""Range of the height of a digit, as a part of the canvas."""
MIN_SIZE = 16
FRAMES = (2, 200)
"""Fewest and most frames of a clip: fewer show no motion, and a shard has at most 256 kinds of members."""
FORMS = ("png", "mp4")
RATE = 8
"""Frames of an mp4 in a second."""


@dataclass(frozen=True)
class MovingDigit:
    """A clip and what is true of it."""

    frames: NDArray[np.uint8]
    """[T, S, S, 3]"""
    motion: int
    """The number of its class."""
    places: NDArray[np.float64]
    """[T, 4]: the numbers of CIRCLES in each frame, in [0, 1)."""


def moving_digits_jobs(
    *, train: int, val: int, size: int, frames: int, form: str, shard_size: int, seed: int = 0
) -> list[ShardJob]:
    """train, val: number of clips. size: pixels per side. form: one of FORMS. Raises ConfigError for clips in
    which nothing can be seen."""
    if size < MIN_SIZE or size % 2:
        raise ConfigError(f"moving digits of {size} pixels: give an even number, {MIN_SIZE} or more")
    if not FRAMES[0] <= frames <= FRAMES[1]:
        raise ConfigError(f"moving digits of {frames} frames: give {FRAMES[0]} to {FRAMES[1]}")
    jobs: list[ShardJob] = []
    for split, count in (("train", train), ("val", val)):
        # read once here, not once in every process that is forked from this one
        strokes(split)
        make = partial(_samples, split=split, size=size, frames=frames, form=form, seed=seed)
        jobs += jobs_of(split, range(count), make, shard_size)
    return jobs


def _samples(
    numbers: Sequence[int], split: str, size: int, frames: int, form: str, seed: int
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members of each clip."""
    for number in numbers:
        clip = make_clip(seed, split, number, size, frames)
        if form == "mp4":
            members = {"mp4": encode_video(clip.frames, RATE)}
        else:
            grey = [Image.fromarray(frame[..., 0]) for frame in clip.frames]
            members = {f"{place:03d}.png": encoded(picture, "PNG") for place, picture in enumerate(grey)}
        yield f"{number:06d}", members | {"cls": str(clip.motion).encode()}


def make_clip(seed: int, split: str, number: int, size: int, frames: int) -> MovingDigit:
    rng = np.random.Generator(np.random.PCG64(seed_of(seed, "moving_digits", split, number, size, frames)))
    motion = int(rng.integers(len(MOTIONS)))
    places = _places(rng, motion, frames)
    ground, level = texture(rng, size).mean(-1), rng.uniform(0, 70)
    _, stroke = pick(rng, split)
    shown = [_drawn(ground, level, stroke, place) for place in places]
    return MovingDigit(np.stack(shown), motion, places)


def _places(rng: Rng, motion: int, frames: int) -> NDArray[np.float64]:
    """[T, 4] in [0, 1)"""
    start, step = rng.random(len(CIRCLES)), np.zeros(len(CIRCLES))
    speed = rng.uniform(*np.transpose(SPEEDS))
    if MOTIONS[motion] in _MOVES:
        circle, direction = _MOVES[MOTIONS[motion]]
        step[circle] = direction * speed[circle]
    return (start + np.arange(frames)[:, None] * step) % 1


def _drawn(
    ground: NDArray[np.float64], level: float, stroke: NDArray[np.uint8], place: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """The frame [S, S, 3], in shades of grey. What lies beyond a side is on the other one."""
    across, down, turn, size = place
    height = HEIGHTS[0] * (HEIGHTS[1] / HEIGHTS[0]) ** size * len(ground)
    # Pillow turns against the clock
    ink = drawn_ink(stroke, height, -360 * turn)
    rows, columns = (
        (round(centre * len(ground)) - length // 2 + np.arange(length)) % len(ground)
        for centre, length in zip((down, across), ink.shape, strict=True)
    )
    box, shade = np.ix_(rows, columns), ground.copy()
    shade[box] += ink * (level - shade[box])
    return np.clip(shade, 0, 255).astype(np.uint8)[..., None].repeat(3, axis=-1)
