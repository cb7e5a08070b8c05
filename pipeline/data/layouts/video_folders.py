"""Videos in class folders: SRC/train/CLASS/*.mp4 and SRC/val/CLASS/*.mp4, or SRC/CLASS/*.mp4, as Kinetics
lies on disks. Splits, class names and keys are those of `image_folders`."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pipeline.data.layouts import image_folders
from pipeline.data.members.video import FORMS, Video
from pipeline.errors import ConfigError, SampleError


@dataclass(frozen=True)
class Film(image_folders.Picture):
    """A video in a class folder."""

    endings: ClassVar[tuple[str, ...]] = tuple(f".{form}" for form in FORMS)
    plural: ClassVar[str] = "videos"

    @property
    def suffixes(self) -> tuple[str, ...]:
        return _form_of(self.path), "cls"


def read(source: Path) -> tuple[Mapping[str, Sequence[image_folders.Picture]], list[str]]:
    """See `image_folders.read`."""
    return image_folders.read(source, Film)


def samples(
    films: Sequence[image_folders.Picture], size: int | None = None
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members of each video, whose bytes stay as they are. Raises SampleError with the path of a file
    that is no video, and ConfigError for a size, as nothing is encoded anew."""
    if size is not None:
        raise ConfigError("videos are stored as they are; leave --size out, or scale them before")
    for film in films:
        form, data = _form_of(film.path), Path(film.path).read_bytes()
        try:
            Video(data, form)
        except SampleError as err:
            raise SampleError(f"{film.path}: {err}; replace or remove the file") from err
        yield film.key, {form: data, "cls": str(film.label).encode()}


def _form_of(path: str) -> str:
    return os.path.splitext(path)[1].lower().removeprefix(".")
