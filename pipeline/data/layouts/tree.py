"""A set as it lies on the disk, in files of its own: what each sample is made of, and how."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pipeline.data.layouts import (
    CAPTIONS,
    HF_DATASETS,
    IMAGE_FOLDER,
    LABELS,
    SHARD_SIZES,
    VIDEO_FOLDERS,
    hf_datasets,
    image_folders,
    images_with_captions,
    images_with_masks,
    labels,
    read_captions,
    read_masks,
    video_folders,
)
from pipeline.data.layouts.item_file import Picked, numbers_on_disk
from pipeline.rng import seed_of

Samples = Iterable[tuple[str, Mapping[str, bytes]]]
"""Key of each sample, and its members: a mapping of suffix to bytes."""
T = TypeVar("T")


class Item(Protocol):
    """What one sample is made of."""

    @property
    def key(self) -> str: ...
    @property
    def files(self) -> tuple[str, ...]:
        """The paths of its files."""
        ...

    @property
    def facts(self) -> Any:
        """What it is made of besides, as plain data."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Those of its members."""
        ...


@dataclass(frozen=True)
class Tree:
    """The items of a set, none of which is held in memory."""

    splits: Mapping[str, Sequence[Item]]
    """Split -> its items, in the order of their names. The one split of a set that names none is empty."""
    samples: Callable[..., Samples]
    """samples(items, size=None) makes the samples; it pickles. size: see `read_picture`. Raises SampleError
    with the path of a file of which none can be made."""
    kind: str
    """Of the items: a part of their order."""
    shard_size: int
    """Samples of a shard, where nobody says otherwise."""
    classes: tuple[str, ...] = ()
    mask_classes: tuple[str, ...] = ()
    """Names of the labels of masks, where these are numbered otherwise."""

    def shuffled(self, split: str, seed: int) -> Sequence[Item]:
        """The items of a split in the order in which they are stored."""
        return shuffled(self.splits[split], self.kind, split, seed)


def read_tree(kind: str, source: Path) -> Tree:
    """A set in one of LAYOUTS. Raises the errors of its reader."""
    size = SHARD_SIZES[kind]
    if kind == IMAGE_FOLDER:
        splits, names = image_folders.read(source)
        return Tree(splits, image_folders.samples, kind, size, tuple(names))
    if kind == VIDEO_FOLDERS:
        films, names = video_folders.read(source)
        return Tree(films, video_folders.samples, kind, size, tuple(names))
    if kind == HF_DATASETS:
        tables, names = hf_datasets.read(source)
        return Tree(tables, hf_datasets.samples, kind, size, names.classes, names.mask_classes)
    if kind == LABELS:
        listed, classes = labels.read(source)
        return Tree(listed, labels.samples, kind, size, classes)
    if kind in CAPTIONS:
        return Tree(read_captions(kind, source), images_with_captions.samples, "captions", size)
    layout = read_masks(kind, source)
    make = partial(images_with_masks.samples, labels=layout.labels)
    return Tree(layout.splits, make, "pairs", size, layout.classes)


def shuffled(items: Sequence[T], kind: str, split: str, seed: int) -> Sequence[T]:
    """The items in another order, which depends on the given one, the kind of set, the split and the seed.
    Neither is held in memory."""
    order = numbers_on_disk(len(items))
    random.Random(seed_of(seed, kind, split)).shuffle(order)
    return Picked(items, order)
