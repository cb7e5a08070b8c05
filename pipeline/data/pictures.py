"""What the makers of shards do with picture files."""

import io
import os
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from pipeline.errors import ConfigError

SUFFIXES = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "webp"}
"""Of files -> of members."""


def pictures_of(*folders: Path, suffixes: Iterable[str] = SUFFIXES, nested: bool = False) -> dict[str, Path]:
    """Key -> file, by name, of the pictures in these folders; a missing folder has none. Two of one key raise ConfigError.

    A key is the file's stem, or where nested FOLDER/STEM.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        prefix = f"{plain_key(folder.name)}/" if nested else ""
        for entry in sorted(os.listdir(folder)) if folder.is_dir() else []:
            stem, suffix = os.path.splitext(entry)
            if suffix.lower() not in suffixes or entry.startswith("."):
                continue
            key = prefix + plain_key(stem)
            if key in found:
                raise ConfigError(f"{folder / entry} and {found[key]} would both have the key '{key}'; rename one")
            found[key] = folder / entry
    return found


def folders_of(root: Path) -> list[Path]:
    """Those inside, by name; none where there is no such folder."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")) if root.is_dir() else []


def plain_key(stem: str) -> str:
    """A dot would end the key in a tar, so it becomes '_'."""
    return stem.replace(".", "_")


def shrunk(picture: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """With `size` pixels on the shorter side; a smaller picture stays as it is."""
    scale = size / min(picture.size)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), resample) if scale < 1 else picture


def member_of(path: Path | str, data: bytes, size: int | None) -> tuple[str, bytes]:
    """(suffix, bytes) of a picture file as a shard's member: as it is, or shrunk to a JPEG. Raises OSError where it does not decode."""
    if size is None:
        return SUFFIXES[Path(path).suffix.lower()], data
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
        return "jpg", encoded(shrunk(image.convert("RGB"), size, Image.Resampling.BICUBIC), "JPEG", quality=95)


def encoded(picture: Image.Image, form: str, **options: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()
