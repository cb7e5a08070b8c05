"""Clips: the frames of a sample, by number, out of a stored video or of numbered pictures.

A sample in pictures has a member for each frame, as 000123.000.jpg, 000123.001.jpg and so on; letters may
stand before the number (000123.frame_0001.jpg).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.data.members.decode import IMAGES
from pipeline.data.members.video import FORMS, Video
from pipeline.errors import SampleError

_FRAME = re.compile(rf"[a-z_-]*([0-9]{{1,6}})\.(?:{'|'.join(IMAGES)})")
VIDEOS = tuple(FORMS)
"""Suffixes of stored videos."""
CLIP = f"a clip ({', '.join(VIDEOS)}, or frames 000.jpg, 001.jpg, ...)"
"""What a sample has to have, in words."""


class Clip(Protocol):
    """The frames of a sample."""

    @property
    def num_frames(self) -> int: ...

    def frames(self, numbers: Sequence[int]) -> Iterator[Any]:
        """The frames of these numbers, which ascend, one after the other: uint8 [3, H, W] each, or what
        becomes one later. Raises SampleError."""
        ...


@dataclass(frozen=True)
class Pictures:
    """Frames that are files of their own, in order. read: decodes one."""

    files: tuple[bytes, ...]
    read: Callable[[bytes], Any]

    @property
    def num_frames(self) -> int:
        return len(self.files)

    def frames(self, numbers: Sequence[int]) -> Iterator[Any]:
        return (self.read(self.files[number]) for number in numbers)


def frame_number(suffix: str) -> int | None:
    """The number of the frame that a member with this suffix is; None where it is none."""
    found = _FRAME.fullmatch(suffix)
    return None if found is None else int(found[1])


def kind_of(suffix: str) -> str:
    """The kind of a member: `image`, `video` or `frame` for all suffixes of these, else its suffix."""
    if suffix in IMAGES:
        return "image"
    if suffix in VIDEOS:
        return "video"
    return suffix if frame_number(suffix) is None else "frame"


def of_clips(suffixes: Sequence[str]) -> tuple[str, ...]:
    """Those of the suffixes that are of clips."""
    return tuple(suffix for suffix in suffixes if kind_of(suffix) in ("video", "frame"))


def clip_in(members: Mapping[str, bytes], read: Callable[[bytes], Any]) -> Clip | None:
    """The clip of a sample: its stored video, else its numbered pictures in the order of their numbers; None
    where it has neither. read: decodes a picture. Raises SampleError."""
    stored = next((suffix for suffix in VIDEOS if suffix in members), None)
    if stored is not None:
        return Video(members[stored], stored)
    numbered: dict[int, str] = {}
    for suffix in members:
        if (number := frame_number(suffix)) is None:
            continue
        if number in numbered:
            raise SampleError(f"frame {number} is there twice: {numbered[number]} and {suffix}")
        numbered[number] = suffix
    files = tuple(members[numbered[number]] for number in sorted(numbered))
    return Pictures(files, read) if files else None
