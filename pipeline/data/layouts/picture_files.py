"""Picture files as the makers of shards read them: their keys, their bytes, and what is left out."""

import io
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.members.decode import MAX_PIXELS, check_header
from pipeline.data.members.turns import TAG, UPRIGHT, turn_of
from pipeline.errors import ConfigError, SampleError

log = logging.getLogger(__name__)
STORED = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "webp"}
"""Maps the ending of a file to the suffix of the member that has its bytes."""
CONVERTED = {".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM"}
"""Maps the ending of a file to Pillow's name of its format. The member is a PNG of the same pixels."""
INKS = ("CMYK", "YCbCr", "LAB")
"""Pillow's modes of pixels that a PNG cannot hold; they become RGB."""
SUFFIXES = (*STORED, *CONVERTED)
ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"} | {form: end for end, form in CONVERTED.items()}
"""Maps Pillow's name of a format to an ending of its files."""


def member_of(path: Path | str) -> str:
    """The suffix of the member that a picture file becomes in its stored size."""
    return STORED.get(os.path.splitext(path)[1].lower(), "png")


class LeftOut:
    """The files and folders that no sample is made of: how many there are of each ending, and the first one.
    None is held."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: Path | None = None
        self._folder = ""

    def add(self, path: Path) -> None:
        kind = "folders" if path.is_dir() else path.suffix.lower() or "without an ending"
        self._counts[kind] += 1
        if self._first is None:
            self._first, self._folder = path, str(path.parent)
        self._folder = os.path.commonpath([self._folder, path.parent])

    def tell(self) -> None:
        """Logs them, in one line."""
        if self._counts:
            listed = ", ".join(f"{count} {kind}" for kind, count in self._counts.most_common())
            log.warning("left out in %s: %s, for instance %s", self._folder, listed, self._first)


def tell_left_out(paths: Iterable[Path]) -> None:
    """Logs files and folders that no sample is made of, see `LeftOut`."""
    left = LeftOut()
    for path in paths:
        left.add(path)
    left.tell()


def pictures_of(
    *folders: Path, suffixes: Iterable[str] = SUFFIXES, nested: bool = False, known: Sequence[str] = ()
) -> dict[str, Path]:
    """Maps a key to its picture file, sorted by name, for the pictures in these folders. A missing folder has
    none. Raises ConfigError for two files of one key.

    A key is the stem of the file; nested: FOLDER/STEM. Files of other suffixes are left out and logged, apart
    from names that end in one of `known`, which belong to the layout.
    """
    found: dict[str, Path] = {}
    left = LeftOut()
    for folder in folders:
        prefix = f"{plain_key(folder.name)}/" if nested else ""
        inside = pictures_in(folder, left, suffixes=suffixes, prefix=prefix, known=known, taken=found)
        found |= {key: folder / name for key, name in inside}
    left.tell()
    return found


def pictures_in(
    folder: Path,
    left: LeftOut,
    *,
    suffixes: Iterable[str] = SUFFIXES,
    prefix: str = "",
    known: Sequence[str] = (),
    taken: Mapping[str, Path] | None = None,
    inner: list[str] | None = None,
) -> Iterator[tuple[str, str]]:
    """Key and name of each picture in one folder, see `pictures_of`. Memory holds all names and keys of the
    folder. left: is given the files that are left out. prefix: of the keys. taken: files of other folders by
    their keys. inner: is given the names of the folders inside, which are left out without it."""
    found: dict[str, str] = {}
    for entry in sorted(os.listdir(folder)) if folder.is_dir() else []:
        stem, suffix = os.path.splitext(entry)
        if entry.startswith(".") or suffix.lower() not in suffixes:
            if inner is not None and not entry.startswith(".") and (folder / entry).is_dir():
                inner.append(entry)
            elif not entry.startswith(".") and not entry.endswith(tuple(known)):
                left.add(folder / entry)
            continue
        key = prefix + plain_key(stem)
        other = folder / found[key] if key in found else (taken or {}).get(key)
        if other is not None:
            raise ConfigError(f"{folder / entry} and {other} would both have the key '{key}'; rename one")
        found[key] = entry
        yield key, entry


def folders_of(root: Path) -> list[Path]:
    """The folders inside `root`, sorted by name, hidden ones left out; none where `root` is no folder."""
    inside = root.iterdir() if root.is_dir() else ()
    return sorted(path for path in inside if path.is_dir() and not path.name.startswith("."))


def plain_key(stem: str) -> str:
    """The key of a file with this stem. A dot would end the key in a tar, so it becomes '_'."""
    return stem.replace(".", "_")


def shrunk(picture: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """The picture with `size` pixels on the shorter side. A smaller picture stays as it is."""
    scale = size / min(picture.size)
    if scale >= 1:
        return picture
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), resample)


def read_picture(path: Path | str, size: int | None) -> tuple[str, bytes, tuple[int, int]]:
    """Suffix and bytes of the member that a picture file becomes, and the (height, width) of the file in
    pixels.

    size None: the bytes stay as they are; a format that no reader takes becomes a PNG of the same pixels.
    Else the member is a JPEG with `size` pixels on the shorter side, where the picture is larger. Raises
    SampleError with the path of a file that is no picture, or more than one.
    """
    return _member(Path(path).read_bytes(), Path(path).suffix.lower(), str(path), size)


def picture_in(data: bytes, where: str, size: int | None) -> tuple[str, bytes, tuple[int, int]]:
    """What `read_picture` gives, of the bytes of a picture file whose name nobody knows. where: for messages.
    Raises SampleError."""
    try:
        with Image.open(io.BytesIO(data), formats=tuple(ENDINGS)) as image:
            ending = ENDINGS[str(image.format)]
    except (OSError, ValueError, SyntaxError, KeyError, Image.DecompressionBombError) as err:
        raise SampleError(f"{where}: {len(data)} bytes are no picture ({', '.join(ENDINGS)})") from err
    return _member(data, ending, where, size)


def _member(data: bytes, ending: str, path: str, size: int | None) -> tuple[str, bytes, tuple[int, int]]:
    try:
        data = _as_png(data, CONVERTED[ending]) if ending in CONVERTED else data
        shape = check_header(data)
        if size is None:
            return STORED.get(ending, "png"), data, shape
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            small = shrunk(_rgb(image), size, Image.Resampling.BICUBIC)
            turn = turn_of(data)
            exif = Image.Exif()
            if turn != UPRIGHT:
                exif[TAG] = turn
            return "jpg", encoded(small, "JPEG", quality=95, exif=exif), shape
    except (SampleError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as err:
        raise SampleError(f"{path}: {err}; replace or remove the file") from err


def _rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB, as `decode_image` reads it: 16 bits lose the lower eight, where Pillow would cut
    all that is above 255."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _as_png(data: bytes, form: str) -> bytes:
    with Image.open(io.BytesIO(data), formats=(form,)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise SampleError(f"image bomb: {image.width}x{image.height} pixels; the limit is {MAX_PIXELS}")
        if getattr(image, "n_frames", 1) > 1:
            raise SampleError(f"a {form} of {image.n_frames} pictures, not of one")  # pyright: ignore[reportAttributeAccessIssue]
        if image.mode in ("F", "I"):
            raise SampleError(f"a {form} of 32 bits a value (Pillow's mode {image.mode}); store 8 or 16 bits")
        return encoded(image.convert("RGB") if image.mode in INKS else image, "PNG")


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    """The bytes of the picture as a file of Pillow's format `form`."""
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()
