"""Sets in files of their own, read as if their shards had been written: with the names, samples and order of
those that `dtem shards make KIND SRC` makes. So all that holds of shards holds of them: the exact order,
going on, any number of processes.

A location is KIND:SRC, or KIND:SRC?held_out=F, or a folder in which there are no shards.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from pipeline.data.layouts import HF_DATASETS, IMAGE_FOLDER, LABELS, LAYOUTS, OTHER_TREES
from pipeline.data.layouts.hf_datasets import is_saved
from pipeline.data.layouts.item_file import Picked
from pipeline.data.layouts.labels import table_in
from pipeline.data.layouts.picture_files import SUFFIXES
from pipeline.data.layouts.splits import split_word
from pipeline.data.layouts.tree import Item, Tree, read_tree
from pipeline.data.shards.locations import checked, is_remote
from pipeline.data.shards.manifest import Manifest
from pipeline.data.shards.table import LooseSamples, Place, table
from pipeline.errors import ConfigError, SampleError

log = logging.getLogger(__name__)
HELD_OUT = "held_out"
SEED = 0
"""Of the order, as the makers' default."""
MANY = 100_000
"""Samples from which on shards are advised: every process lists the files, and opens each of them."""


@dataclass(frozen=True)
class Loose:
    """What a location names."""

    kind: str
    source: str
    held_out: float = 0.0
    """Share of the samples that are for evaluation, in a set without splits."""

    def __str__(self) -> str:
        return f"{self.kind}:{self.source}" + (f"?{HELD_OUT}={self.held_out:g}" if self.held_out else "")


def loose_of(location: object) -> Loose | None:
    """The set that KIND:SRC names; None for any other location. Raises SampleError for a set that is not
    here, and for options that there are not."""
    kind, colon, rest = location.partition(":") if isinstance(location, str) else ("", "", "")
    if not colon or kind not in LAYOUTS:
        return None
    source, mark, option = rest.partition("?")
    if is_remote(checked(source)):
        raise SampleError(f"{location}: its files are read one by one, so they have to be on a disk of here")
    return Loose(kind, checked(source), _share(str(location), option) if mark else 0.0)


def _share(location: str, option: str) -> float:
    name, _, value = option.partition("=")
    try:
        share = float(value) if name == HELD_OUT else 0.0
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise SampleError(f"{location}: give {HELD_OUT}=F behind the '?', with a share F in (0, 1), as 0.1")
    return share


def found_in(folder: str) -> Loose | None:
    """The set in a folder without shards: pictures with a table of labels beside them, an ImageFolder tree,
    or a data set that Hugging Face's `save_to_disk` wrote. None where there is no such thing. Raises
    ConfigError for the tree of another layout, which has to be named."""
    root = Path(folder)
    if is_saved(root):
        return Loose(HF_DATASETS, folder)
    if (listed := table_in(root)) is not None:
        return Loose(LABELS, str(listed))
    inside = {path.name for path in root.iterdir() if path.is_dir()} if root.is_dir() else set()
    for kind, needed in OTHER_TREES.items():
        if set(needed) <= inside:
            raise ConfigError(
                f"{folder} holds {' and '.join(needed)}, which are no classes; name its layout: "
                f"{kind}:{folder}"
            )
    return Loose(IMAGE_FOLDER, folder) if any(map(_has_pictures, _class_folders(root))) else None


def _class_folders(root: Path) -> Iterator[str]:
    for entry in _folders(root):
        yield entry
        if split_word(os.path.basename(entry)):
            yield from _folders(entry)


def _has_pictures(folder: str) -> bool:
    with os.scandir(folder) as entries:
        return any(
            entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".") for entry in entries
        )


def _folders(root: Path | str) -> list[str]:
    with os.scandir(root) as entries:
        return [entry.path for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def loose_manifest(loose: Loose) -> Manifest:
    """The manifest of a set in files of its own. Raises the errors of its reader, and ConfigError where no
    share of it can be held out."""
    return _read(loose, _state(loose.source))


def _state(source: str) -> tuple[tuple[str, int], ...]:
    """The times of a folder and of those in it, two deep, or of a file: by them a changed set is known."""
    inner = [source]
    if os.path.isdir(source):
        inner += _folders(source)
        inner += [deeper for folder in inner[1:] for deeper in _folders(folder)]
    return tuple((path, os.stat(path).st_mtime_ns) for path in inner if os.path.exists(path))


@lru_cache(maxsize=8)
def _read(loose: Loose, state: object) -> Manifest:
    tree = _divided(read_tree(loose.kind, Path(loose.source)), loose)
    parts = {
        f"{split or 'train'}-{number:05d}.tar": (split, items[start : start + tree.shard_size])
        for split in tree.splits
        for items in [tree.shuffled(split, SEED)]
        for number, start in enumerate(range(0, len(items), tree.shard_size))
    }
    counts = [len(items) for _, items in parts.values()]
    if sum(counts) > MANY:
        log.warning(
            "%s has %d samples in files of their own; shards begin and read faster: `dtem shards make %s %s "
            "OUT`",
            *(loose, sum(counts), loose.kind, loose.source),
        )
    listed = [_listed(items) for _, items in parts.values()]
    hashes = [digest for digest, _ in listed]
    suffixes = {suffix for items in tree.splits.values() for item in items for suffix in item.suffixes}
    samples = _TreeSamples(loose.kind, tree, {name: items for name, (_, items) in parts.items()})
    place = Place(loose.source, "", "", samples)
    sizes, splits = [size for _, size in listed], [split for split, _ in parts.values()]
    shards = table((place,), [0] * len(parts), list(parts), counts, sizes, hashes, hashes, splits)
    return Manifest(shards, tuple(sorted(suffixes)), tree.classes, tree.mask_classes)


class _TreeSamples(LooseSamples):
    """Samples that are made of their files when they are asked for."""

    def __init__(self, kind: str, tree: Tree, items: Mapping[str, Sequence[Item]]):
        self.kind, self._tree, self._items = kind, tree, items

    def key(self, shard: str, sample: int) -> str:
        return self._items[shard][sample].key

    def members(self, shard: str, sample: int) -> Mapping[str, bytes]:
        ((_, members),) = self._tree.samples([self._items[shard][sample]])
        return members


def _listed(items: Sequence[Item]) -> tuple[str, int]:
    """Hash of what the samples of a shard are made of, by names and sizes of files, and their bytes."""
    found, total = hashlib.sha256(), 0
    for item in items:
        sizes = [_size(path) for path in item.files]
        names = [os.path.basename(path) for path in item.files]
        found.update(json.dumps([item.key, item.facts, names, sizes]).encode() + b"\n")
        total += sum(sizes)
    return found.hexdigest(), total


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as err:
        raise SampleError(f"{path}: {err.strerror}; restore or remove it") from err


def _divided(tree: Tree, loose: Loose) -> Tree:
    """The tree, of which a share is split `val`: the samples whose keys have the lowest hashes."""
    if not loose.held_out:
        return tree
    if len(tree.splits) != 1 or not tree.splits.keys() <= {"", "train"}:
        raise ConfigError(
            f"{loose.source} has the splits {', '.join(tree.splits)} already; leave ?{HELD_OUT} out"
        )
    (items,) = tree.splits.values()
    chosen: dict[str, list[int]] = {"train": [], "val": []}
    for number, item in enumerate(items):
        chosen["val" if is_held_out(item.key, loose.held_out) else "train"].append(number)
    if not all(chosen.values()):
        raise ConfigError(
            f"{loose}: of its {len(items)} samples {len(chosen['val'])} would be held out; give another share"
        )
    return replace(tree, splits={split: Picked(items, numbers) for split, numbers in chosen.items()})


def is_held_out(key: str, share: float) -> bool:
    """Whether a sample is of the share that is held out: a function of its key alone."""
    digest = hashlib.sha256(key.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
