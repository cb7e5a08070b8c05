"""An ImageFolder tree as shards: SRC/{train,val}/CLASS/*.JPEG, or SRC/CLASS/*.JPEG.

With ImageNet's LOC_synset_mapping.txt beside the tree, a class is called "n01440764 tench, Tinca tinca"; else as its folder is.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.decode import check_header
from pipeline.data.pictures import SUFFIXES, folders_of, member_of, pictures_of
from pipeline.data.rng import seed_of
from pipeline.data.write import ShardJob, cut
from pipeline.errors import ConfigError, SampleError

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
    folders = sorted({path.name for name in splits for path in folders_of(source / name)})
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
            suffix, data = member_of(picture.path, data, part.size)
        except (SampleError, OSError) as err:
            raise SampleError(f"{picture.path}: {err}; replace or remove the file") from err
        yield picture.key, {suffix: data, "cls": str(picture.label).encode()}


def _pictures(root: Path, folders: list[str]) -> list[Picture]:
    """By name. Keys are CLASS/STEM."""
    label = {name: number for number, name in enumerate(folders)}
    found = pictures_of(*folders_of(root), nested=True)
    if not found:
        raise ConfigError(f"{root} holds no images ({', '.join(SUFFIXES)}) in its class folders")
    return [Picture(str(path), key, label[path.parent.name]) for key, path in found.items()]


def _names(source: Path, folders: list[str]) -> list[str]:
    path = next((folder / SYNSETS for folder in (source, source.parent) if (folder / SYNSETS).is_file()), None)
    lines = path.read_text(encoding="utf-8").splitlines() if path else []
    human = dict(line.split(" ", 1) for line in lines if " " in line)
    return [f"{name} {human[name]}" if name in human else name for name in folders]
