"""Which frames of a video a clip has: a stretch of every n-th frame, or one frame of each of equal parts."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config.schema import DataConfig
from pipeline.data.members.clips import Clip
from pipeline.errors import SampleError


@dataclass(frozen=True)
class FrameChoice:
    """Chooses `frames` of the frames 0, 1, ... of a video. Numbers ascend; those of a video that is too short
    come several times.

    stride: every so many frames of one stretch (VideoMAE's 16 frames at a stride of 4); behind the end its
    last frame is repeated. None: a frame of each of `frames` equal parts of the video (TSN's segments).
    clips: of an evaluation.
    """

    frames: int
    stride: int | None = None
    clips: int = 1

    @classmethod
    def of(cls, config: DataConfig) -> "FrameChoice":
        return cls(config.num_frames, config.stride, config.eval_clips)

    def drawn(self, length: int) -> list[int]:
        """A clip to train on, drawn from Python's generator: where the stretch begins, or which frame of each
        part. length: frames of the video."""
        if self.stride is not None:
            return self._stretch(random.randint(0, self._room(length)), length)
        return self._of_parts(length, random.randint)

    def fixed(self, length: int) -> list[list[int]]:
        """The clips of an evaluation. One lies in the middle; several stretches begin at equal distances from
        the first frame on, and several frames of a part lie at equal distances in it."""
        return [self._fixed(length, clip) for clip in range(self.clips)]

    def _fixed(self, length: int, clip: int) -> list[int]:
        if self.stride is not None:
            share = clip / (self.clips - 1) if self.clips > 1 else 0.5
            return self._stretch(int(share * self._room(length)), length)
        odd, parts = 2 * clip + 1, 2 * self.clips
        return self._of_parts(length, lambda low, high: low + (high - low + 1) * odd // parts)

    def _room(self, length: int) -> int:
        """The last frame at which a stretch can begin."""
        return max(0, length - (self.frames - 1) * (self.stride or 1) - 1)

    def _stretch(self, start: int, length: int) -> list[int]:
        return [min(start + number * (self.stride or 1), length - 1) for number in range(self.frames)]

    def _of_parts(self, length: int, choose: Callable[[int, int], int]) -> list[int]:
        """choose: one of the numbers from the first to the second, both included."""
        edges = [part * length // self.frames for part in range(self.frames + 1)]
        return [choose(edges[part], max(edges[part], edges[part + 1] - 1)) for part in range(self.frames)]


def taken(clip: Clip, numbers: Sequence[int]) -> Iterator[Any]:
    """The frames of these numbers, which do not descend; one that comes several times is decoded once. Raises
    SampleError where they differ in size."""
    decoded = iter(clip.frames(list(dict.fromkeys(numbers))))
    last, frame, shape = None, None, None
    for number in numbers:
        if number != last:
            last, frame = number, next(decoded)
            shape = shape or frame.shape
            if frame.shape != shape:
                raise SampleError(
                    f"frame {number} has {frame.shape[-1]}x{frame.shape[-2]} pixels and frame {numbers[0]} "
                    f"{shape[-1]}x{shape[-2]}; the frames of a clip have one size"
                )
        yield frame
