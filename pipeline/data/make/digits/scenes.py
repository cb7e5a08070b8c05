"""The embedded set: scenes of handwritten digits (real pen strokes, from scikit-learn) on textured canvases.

A sample has a `jpg`, a `cls` (the largest digit, 0..9), a `json` with five captions that are true of the
picture and `labels`, the names of its digits, and a `seg.png` (uint8: 0 ground, 1 + digit where there is
ink). Train and val draw from disjoint digit images. Scene i of a split is a function of (seed, split, i,
size) alone.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.layouts.picture_files import encoded
from pipeline.data.make.digits.captions import NAMES, Placed, captions
from pipeline.data.make.write import ShardJob, jobs_of
from pipeline.errors import ConfigError
from pipeline.extras import extra
from pipeline.rng import seed_of

CLASSES = NAMES
MASK_CLASSES = ("ground", *NAMES)
NUM_DIGITS = (0.3, 0.4, 0.3)
"""Chance of 1, 2 and 3 digits in a scene."""
LARGEST = (0.50, 0.70)
"""Range of the height of the largest digit, as a part of the canvas."""
SMALLEST = 0.17
MARGIN = 0.62
"""The other digits have at most this part of the largest one's height, and of its box."""
ROTATION = 12.0
"""Degrees to either side: a six stays a six."""
MIN_SIZE = 32

Rng = np.random.Generator
Ink = tuple[int, NDArray[np.float64], int, int]
"""(digit, ink [h, w] in 0..1, top, left)"""


@dataclass(frozen=True)
class Scene:
    """A picture and what is true of it."""

    image: NDArray[np.uint8]
    """[S, S, 3]"""
    mask: NDArray[np.uint8]
    """[S, S]"""
    digits: tuple[Placed, ...]
    """The largest first."""
    captions: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The names of its digits, each once."""
        return [NAMES[digit] for digit in sorted({placed.digit for placed in self.digits})]


def digit_scenes_jobs(*, train: int, val: int, size: int, shard_size: int, seed: int = 0) -> list[ShardJob]:
    """train, val: number of scenes. size: pixels per side. Raises ConfigError for scenes that are too small
    to read."""
    if size < MIN_SIZE:
        raise ConfigError(
            f"digit scenes of {size} pixels: give {MIN_SIZE} or more, else the digits cannot be read"
        )
    jobs: list[ShardJob] = []
    for split, count in (("train", train), ("val", val)):
        # read once here, not once in every process that is forked from this one
        strokes(split)
        make = partial(_samples, split=split, size=size, seed=seed)
        jobs += jobs_of(split, range(count), make, shard_size)
    return jobs


def _samples(
    numbers: Sequence[int], split: str, size: int, seed: int
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members of each scene."""
    for number in numbers:
        scene = make_scene(seed, split, number, size)
        yield (
            f"{number:06d}",
            {
                "jpg": encoded(Image.fromarray(scene.image), "JPEG", quality=92, subsampling=0),
                "cls": str(scene.digits[0].digit).encode(),
                "json": json.dumps({"captions": scene.captions, "labels": scene.names}).encode(),
                "seg.png": encoded(Image.fromarray(scene.mask), "PNG"),
            },
        )


def make_scene(seed: int, split: str, number: int, size: int) -> Scene:
    rng = np.random.Generator(np.random.PCG64(seed_of(seed, "digit_scenes", split, number, size)))
    canvas = texture(rng, size)
    mask = np.zeros((size, size), dtype=np.uint8)
    digits = []
    for digit, ink, top, left in _layout(rng, split, size):
        height, width = ink.shape
        box = np.s_[top : top + height, left : left + width]
        canvas[box] += ink[..., None] * (rng.uniform(0, 70, 3) - canvas[box])
        mask[box][ink > 0.5] = 1 + digit
        digits.append(Placed(digit, (left + width / 2) / size, (top + height / 2) / size))
    image = np.clip(canvas, 0, 255).astype(np.uint8)
    return Scene(image, mask, tuple(digits), captions(digits, rng))


def _layout(rng: Rng, split: str, size: int) -> list[Ink]:
    """The largest digit first; boxes do not touch. A digit that finds no place is left out."""
    count = 1 + int(rng.choice(len(NUM_DIGITS), p=NUM_DIGITS))
    placed: list[Ink] = []
    largest = (0.0, 0.0)
    for number in range(count):
        digit, stroke = pick(rng, split)
        aspect = stroke.shape[1] / stroke.shape[0]
        if number == 0:
            height = rng.uniform(*LARGEST) * size
            largest = (height, height * height * aspect)
        else:
            highest = min(MARGIN * largest[0], (MARGIN * largest[1] / aspect) ** 0.5)
            height = max(SMALLEST * size, rng.uniform(SMALLEST * size, max(highest, SMALLEST * size)))
        ink = drawn_ink(stroke, height, rng.uniform(-ROTATION, ROTATION))
        place = _free_place(rng, ink.shape, placed, size)
        if place is not None:
            placed.append((digit, ink, *place))
    return placed


def _free_place(rng: Rng, shape: tuple[int, ...], placed: list[Ink], size: int) -> tuple[int, int] | None:
    height, width = shape
    for _ in range(40):
        top, left = int(rng.integers(0, size - height + 1)), int(rng.integers(0, size - width + 1))
        apart = (
            top + height < t or t + ink.shape[0] < top or left + width < at or at + ink.shape[1] < left
            for _, ink, t, at in placed
        )
        if all(apart):
            return top, left
    return None


def drawn_ink(stroke: NDArray[np.uint8], height: float, angle: float) -> NDArray[np.float64]:
    """The ink of a stroke at this height: turned by the angle in degrees, cropped, with firm edges; in
    0..1."""
    width = stroke.shape[1] / stroke.shape[0] * height
    image = Image.fromarray(stroke).resize((max(3, round(width)), round(height)), Image.Resampling.BICUBIC)
    ink = np.asarray(image.rotate(angle, Image.Resampling.BICUBIC, expand=True), dtype=np.float64) / 255
    ink = np.clip((ink - 0.3) / 0.4, 0, 1)
    rows, columns = np.flatnonzero(ink.max(1) > 0.5), np.flatnonzero(ink.max(0) > 0.5)
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def texture(rng: Rng, size: int) -> NDArray[np.float64]:
    """Coloured clouds, stripes and grain, [S, S, 3], all lighter than the ink will be."""
    cells = int(rng.integers(3, 9))
    clouds = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    rows, columns = np.mgrid[0:size, 0:size] / size
    angle, waves = rng.uniform(0, np.pi), rng.uniform(2, 12)
    stripes = np.sin(2 * np.pi * waves * (rows * np.cos(angle) + columns * np.sin(angle)))[..., None]
    canvas = np.asarray(clouds) * (80 / 255) + 12 * rng.random() * stripes + rng.normal(0, 6, (size, size, 1))
    return canvas + 150


@lru_cache(maxsize=2)
def strokes(split: str) -> tuple[tuple[NDArray[np.uint8], ...], ...]:
    """The pictures of each digit in this split, cropped to their ink. Train has four fifths of them and val
    the rest, whatever the seed."""
    with extra("demo"):
        from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    chosen = []
    for digit in range(10):
        images = np.unique(np.asarray(pixels)[np.asarray(labels) == digit], axis=0).reshape(-1, 8, 8)
        order = np.random.Generator(np.random.PCG64(seed_of("digit_scenes", digit))).permutation(len(images))
        limit = len(images) * 4 // 5
        chosen.append(
            tuple(_cropped(images[i]) for i in (order[:limit] if split == "train" else order[limit:]))
        )
    return tuple(chosen)


def _cropped(image: NDArray[np.float64]) -> NDArray[np.uint8]:
    rows, columns = np.flatnonzero(image.max(1) > 4), np.flatnonzero(image.max(0) > 4)
    ink = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.pad((ink * (255 / 16)).astype(np.uint8), 1)


def pick(rng: Rng, split: str) -> tuple[int, NDArray[np.uint8]]:
    digit = int(rng.integers(10))
    pictures = strokes(split)[digit]
    return digit, pictures[int(rng.integers(len(pictures)))]
