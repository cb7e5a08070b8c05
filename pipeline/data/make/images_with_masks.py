"""Trees of images and masks as shards. A reader in layouts/ says where they lie and what their labels mean;
this file does the rest."""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.make.picture_files import encoded, read_picture, shrunk
from pipeline.data.make.write import ShardJob, cut
from pipeline.data.members.decode import decode_mask
from pipeline.data.members.masks import label_counts, size_mismatch
from pipeline.errors import ConfigError, SampleError
from pipeline.rng import seed_of


@dataclass(frozen=True)
class Pair:
    key: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Layout:
    """labels: what a label of the stored masks becomes: a class, or 255 (ignored). One that is not listed is
    refused."""

    classes: tuple[str, ...]
    labels: Mapping[int, int]
    splits: Mapping[str, Sequence[Pair]]


@dataclass(frozen=True)
class _Part:
    """One shard's pairs; size: pixels of the shorter side to which larger ones are resized, or None for the
    files as they are."""

    pairs: tuple[Pair, ...]
    labels: Mapping[int, int]
    size: int | None


def layout_jobs(layout: Layout, *, shard_size: int, size: int | None, seed: int = 0) -> list[ShardJob]:
    """The order within a split is a shuffle that depends on the keys and the seed only."""
    jobs = []
    for split, found in layout.splits.items():
        pairs = sorted(found, key=lambda pair: pair.key)
        random.Random(seed_of(seed, "pairs", split)).shuffle(pairs)
        parts = cut(pairs, shard_size)
        jobs += [
            ShardJob(f"{split}-{n:05d}.tar", read_part, _Part(tuple(part), layout.labels, size))
            for n, part in enumerate(parts)
        ]
    return jobs


def read_part(part: _Part) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, members) of each pair; SampleError with the path for a file that cannot be a sample's."""
    table = np.full(256, -1, dtype=np.int16)
    table[list(part.labels)] = list(part.labels.values())
    for pair in part.pairs:
        suffix, image, shape = read_picture(pair.image, part.size)
        try:
            mask = _canonical(pair.mask.read_bytes(), shape, table, part.size)
        except SampleError as err:
            raise SampleError(f"{pair.mask}: {err}; replace it, or remove it with its image") from err
        yield pair.key, {suffix: image, "seg.png": mask}


def _canonical(data: bytes, shape: tuple[int, int], table: NDArray[np.int16], size: int | None) -> bytes:
    """The mask's file with our labels: the file itself where that changes nothing."""
    mask = decode_mask(data).numpy()
    if mask.shape != shape:
        raise SampleError(size_mismatch(shape, mask.shape))
    counts = label_counts(mask)
    if strange := [
        f"{label} ({counts[label]} pixels)" for label in np.flatnonzero(counts) if table[label] < 0
    ]:
        raise SampleError(f"mask has label {', '.join(strange[:5])}, which this layout does not have")
    labels = table[mask].astype(np.uint8)
    picture = Image.fromarray(labels)
    small = picture if size is None else shrunk(picture, size, Image.Resampling.NEAREST)
    return data if small is picture and np.array_equal(labels, mask) else encoded(small, "PNG")


def paired(images: Mapping[str, Path], masks: Mapping[str, Path]) -> list[Pair]:
    """By key; SampleError names the images without a mask and the masks without an image."""
    alone = [f"image {images[key]} has no mask" for key in sorted(images.keys() - masks.keys())]
    alone += [f"mask {masks[key]} has no image" for key in sorted(masks.keys() - images.keys())]
    if alone:
        more = f" and {len(alone) - 5} more" if len(alone) > 5 else ""
        raise SampleError(f"{'; '.join(alone[:5])}{more}; add what is missing, or remove the file")
    return [Pair(key, image, masks[key]) for key, image in images.items()]


def root_with(source: Path, needed: Sequence[str], *inner: str) -> Path:
    """`source`, or a known folder inside of it, that holds the needed folders; ConfigError where neither
    does."""
    for root in (source, *(source / name for name in inner)):
        if all((root / name).is_dir() for name in needed):
            return root
    raise ConfigError(f"{source} does not hold the folders {' and '.join(needed)}; give the folder that does")


def non_empty(source: Path, splits: Mapping[str, Sequence[Pair]], tree: str) -> dict[str, Sequence[Pair]]:
    """Those that have samples; ConfigError, with the tree that was looked for, where none has."""
    found = {split: pairs for split, pairs in splits.items() if pairs}
    if not found:
        raise ConfigError(f"{source} holds no images and masks; give SRC with {tree}")
    return found
