"""What the makers of shards do with picture files."""

import io
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from pipeline.data.members.decode import MAX_PIXELS, check_header
from pipeline.errors import ConfigError, SampleError

log = logging.getLogger(__name__)
STORED = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "webp"}
"""Ending of a file -> suffix of the member that has its bytes."""
CONVERTED = {".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF"}
"""Ending of a file -> Pillow's name of its format; the member is a PNG of the same pixels."""
SUFFIXES = (*STORED, *CONVERTED)


def pictures_of(
    *folders: Path, suffixes: Iterable[str] = SUFFIXES, nested: bool = False, known: Sequence[str] = ()
) -> dict[str, Path]:
    """Key -> file, by name, of the pictures in these folders; a missing folder has none. Two of one key raise
    ConfigError.

    A key is the file's stem, or where nested FOLDER/STEM. What is left out is told by its ending, apart from
    names that end in one of `known`, which belong to the layout.
    """
    found: dict[str, Path] = {}
    left: list[Path] = []
    for folder in folders:
        prefix = f"{plain_key(folder.name)}/" if nested else ""
        for entry in sorted(os.listdir(folder)) if folder.is_dir() else []:
            stem, suffix = os.path.splitext(entry)
            if suffix.lower() not in suffixes or entry.startswith("."):
                left.append(folder / entry)
                continue
            key = prefix + plain_key(stem)
            if key in found:
                raise ConfigError(
                    f"{folder / entry} and {found[key]} would both have the key '{key}'; rename one"
                )
            found[key] = folder / entry
    tell_left_out(
        [path for path in left if not path.name.startswith(".") and not path.name.endswith(tuple(known))]
    )
    return found


def tell_left_out(paths: Sequence[Path]) -> None:
    """Warns of files and folders that no sample is made of: how many there are of each ending, and one of
    them."""
    if paths:
        counts = Counter(
            "folders" if path.is_dir() else path.suffix.lower() or "without an ending" for path in paths
        )
        listed = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        log.warning(
            "left out in %s: %s, for instance %s",
            os.path.commonpath([path.parent for path in paths]),
            listed,
            paths[0],
        )


def folders_of(root: Path) -> list[Path]:
    """Those inside, by name; none where there is no such folder."""
    return (
        sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if root.is_dir()
        else []
    )


def plain_key(stem: str) -> str:
    """A dot would end the key in a tar, so it becomes '_'."""
    return stem.replace(".", "_")


def shrunk(picture: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """With `size` pixels on the shorter side; a smaller picture stays as it is."""
    scale = size / min(picture.size)
    return (
        picture.resize((round(picture.width * scale), round(picture.height * scale)), resample)
        if scale < 1
        else picture
    )


def read_picture(path: Path | str, size: int | None) -> tuple[str, bytes, tuple[int, int]]:
    """(suffix, bytes, (height, width) in pixels of the file) of a picture file as a shard's member.

    As it is; a PNG of the same pixels where no reader takes the format; or shrunk to a JPEG of `size` pixels
    on the shorter side. SampleError names a file that is no picture, or more than one.
    """
    data, ending = Path(path).read_bytes(), Path(path).suffix.lower()
    try:
        data = _as_png(data, CONVERTED[ending]) if ending in CONVERTED else data
        shape = check_header(data)
        if size is None:
            return STORED.get(ending, "png"), data, shape
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            return (
                "jpg",
                encoded(shrunk(image.convert("RGB"), size, Image.Resampling.BICUBIC), "JPEG", quality=95),
                shape,
            )
    except (SampleError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as err:
        raise SampleError(f"{path}: {err}; replace or remove the file") from err


def _as_png(data: bytes, form: str) -> bytes:
    with Image.open(io.BytesIO(data), formats=(form,)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise SampleError(f"image bomb: {image.width}x{image.height} pixels; the limit is {MAX_PIXELS}")
        if getattr(image, "n_frames", 1) > 1:
            raise SampleError(f"a {form} of {image.n_frames} pictures, not of one")  # pyright: ignore[reportAttributeAccessIssue]
        return encoded(image, "PNG")


def encoded(picture: Image.Image, form: str, **options: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()
