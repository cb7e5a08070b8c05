"""An ImageFolder tree as shards: SRC/{train,val}/CLASS/*.JPEG, or SRC/CLASS/*.JPEG.

With ImageNet's LOC_synset_mapping.txt beside the tree, a class is called "n01440764 tench, Tinca tinca"; else as its folder is.
"""

import io
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipeline.data.decode import check_header
from pipeline.data.rng import seed_of
from pipeline.data.write import ShardJob, cut
from pipeline.errors import ConfigError, SampleError

SUFFIXES = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "webp"}
SYNSETS = "LOC_synset_mapping.txt"


@dataclass(frozen=True)
class Picture:
    path: str
    key: str
    label: int


@dataclass(frozen=True)
class _Part:
    """One shard's pictures; size: pixels of the shorter side to which larger ones are resized, or None for the files as they are."""

    pictures: tuple[Picture, ...]
    size: int | None


def imagefolder_jobs(source: Path, *, shard_size: int, size: int | None, seed: int = 0) -> tuple[list[ShardJob], list[str]]:
    """(jobs, class names). The order within a split is a shuffle that depends on the files' names and the seed only."""
    splits = [name for name in ("train", "val") if (source / name).is_dir()] or [""]
    folders = sorted({path.name for name in splits for path in _folders(source / name)})
    if not folders:
        raise ConfigError(f"{source} has no class folders; give SRC with SRC/train/CLASS/*.jpg, or SRC/CLASS/*.jpg")
    jobs = []
    for name in splits:
        pictures = _pictures(source / name, folders)
        random.Random(seed_of(seed, "imagefolder", name)).shuffle(pictures)
        parts = cut(pictures, shard_size)
        jobs += [ShardJob(f"{name or 'train'}-{n:05d}.tar", read_part, _Part(tuple(part), size)) for n, part in enumerate(parts)]
    return jobs, _names(source, folders)


def read_part(part: _Part) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members) of each picture; one whose header is not an image's raises SampleError with its path."""
    for picture in part.pictures:
        data = Path(picture.path).read_bytes()
        try:
            check_header(data)
            suffix, data = (SUFFIXES[Path(picture.path).suffix.lower()], data) if part.size is None else ("jpg", _resized(data, part.size))
        except (SampleError, OSError) as err:
            raise SampleError(f"{picture.path}: {err}; replace or remove the file") from err
        yield picture.key, {suffix: data, "cls": str(picture.label).encode()}


def _resized(data: bytes, size: int) -> bytes:
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
        scale = size / min(image.size)
        picture = image.convert("RGB")
    if scale < 1:
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=95)
    return out.getvalue()


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")) if root.is_dir() else []


def _pictures(root: Path, folders: list[str]) -> list[Picture]:
    """By name. Keys are CLASS/STEM; a dot in a stem would end the key, so it becomes '_'."""
    label = {name: number for number, name in enumerate(folders)}
    found: dict[str, Picture] = {}
    for folder in _folders(root):
        for entry in sorted(os.listdir(folder)):
            stem, suffix = os.path.splitext(entry)
            if suffix.lower() not in SUFFIXES:
                continue
            key = f"{folder.name.replace('.', '_')}/{stem.replace('.', '_')}"
            if key in found:
                raise ConfigError(f"{folder / entry} and {found[key].path} would both have the key '{key}'; rename one")
            found[key] = Picture(str(folder / entry), key, label[folder.name])
    if not found:
        raise ConfigError(f"{root} holds no images ({', '.join(SUFFIXES)}) in its class folders")
    return list(found.values())


def _names(source: Path, folders: list[str]) -> list[str]:
    path = next((folder / SYNSETS for folder in (source, source.parent) if (folder / SYNSETS).is_file()), None)
    lines = path.read_text(encoding="utf-8").splitlines() if path else []
    human = dict(line.split(" ", 1) for line in lines if " " in line)
    return [f"{name} {human[name]}" if name in human else name for name in folders]
