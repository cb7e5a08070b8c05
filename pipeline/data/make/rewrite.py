"""Sets made of the samples of other sets: a part held out, or several sets in one. The bytes of the members
stay, apart from labels that get other numbers."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from pipeline.data.layouts.item_file import ItemFile
from pipeline.data.layouts.labels import members_by_key
from pipeline.data.make.merge_classes import Tables, reconciled
from pipeline.data.make.verify import opened
from pipeline.data.make.write import jobs_of, shuffled_jobs, write_shards
from pipeline.data.members.clips import kind_of
from pipeline.data.members.decode import decode_class, decode_json
from pipeline.data.members.labels import renumbered
from pipeline.data.shards.cache import default_cache
from pipeline.data.shards.label_noise import TRUE_CLASS
from pipeline.data.shards.loose import is_held_out
from pipeline.data.shards.manifest import Manifest
from pipeline.data.shards.reader import SampleReader
from pipeline.data.shards.table import Shard
from pipeline.errors import ConfigError, SampleError, first_few

PATIENCE = 60.0


@dataclass(frozen=True)
class Stored:
    """A sample of another set."""

    source: int
    """Number of the set."""
    shard: int
    sample: int
    key: str
    """Its key in the new set."""


def split_set(
    source: str, out: Path, *, share: float, name: str, shard_size: int, workers: int
) -> dict[str, int]:
    """Writes a set whose training samples, or all where it names no split, are divided: a share of them, by a
    hash of the key, is split `name`. Other splits stay. Gives the number of samples of each split.

    Raises ConfigError where the set has the split already, or a part would be empty.
    """
    forget()
    manifest = opened(source)
    if name in (there := set(manifest.shards.splits.tolist())):
        raise ConfigError(f"{source} has a split '{name}' already; give --name another one")
    divided = "train" if "train" in there else ""
    if divided not in there:
        raise ConfigError(f"{source} has no samples to train on; its splits are {', '.join(sorted(there))}")

    def split_of(own: str, key: str) -> str:
        return own if own != divided else name if is_held_out(key, share) else "train"

    splits = by_split([source], split_of)
    if lacks := {"train", name} - splits.keys():
        raise ConfigError(f"{source}: a share of {share:g} leaves the split '{lacks.pop()}' empty")
    make = partial(_copied, sources=(source,), tables=(None,))
    jobs = [job for split, items in splits.items() for job in jobs_of(split, items, make, shard_size)]
    names = {"classes": manifest.classes, "mask_classes": manifest.mask_classes}
    write_shards(jobs, out, **names, label_noise=manifest.label_noise, workers=workers)
    return {split: len(items) for split, items in splits.items()}


def label_set(source: str, table: Path, out: Path, *, shard_size: int, workers: int) -> int:
    """Writes a set anew with the classes that a table gives each key (see `members_by_key`): as `cls`, or in
    `json`, whose other fields stay. Gives the number of rows without a sample.

    Raises ConfigError where a sample has no row, and the errors of the table.
    """
    forget()
    members, names = members_by_key(table)
    manifest, lacking, used = opened(source), [], set()
    for _, _, _, key in _samples_of(source):
        used.add(key)
        lacking += [] if key in members else [key]
    if lacking:
        raise ConfigError(f"{table} has no row for {first_few(lacking, 3, ', ')}; give each sample one")
    make = partial(_labelled, source=source, table=str(table))
    splits = by_split([source], lambda own, key: own or "train")
    jobs = [job for split, items in splits.items() for job in jobs_of(split, items, make, shard_size)]
    masks = manifest.mask_names if "seg.png" in manifest.schema else ()
    write_shards(jobs, out, classes=names, mask_classes=masks, workers=workers)
    return len(members.keys() - used)


@lru_cache(maxsize=1)
def _members_by_key(table: str) -> Mapping[str, Mapping[str, bytes]]:
    return members_by_key(Path(table))[0]


def _labelled(items: Sequence[Stored], source: str, table: str) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    """Key and members of each sample, with the classes of the table. Raises SampleError for a json that is no
    object."""
    for item in items:
        members = reader_of(source).read(item.shard, item.sample)
        # of the labels that are replaced
        members.pop(TRUE_CLASS, None)
        own = dict(_members_by_key(table)[item.key])
        if "json" in own and "json" in members:
            known = decode_json(members["json"])
            if not isinstance(known, dict):
                raise SampleError(f"{source}, sample '{item.key}': its json is no object to add a field to")
            own["json"] = json.dumps(known | decode_json(own["json"])).encode()
        yield item.key, members | own


def merge_sets(
    sources: Sequence[str], out: Path, *, prefixed: bool, shard_size: int, seed: int, workers: int
) -> tuple[Path, Tables]:
    """Writes the samples of several sets as one, each split shuffled. Labels are renumbered by the names of
    their classes. prefixed: whether keys begin with the number of their set. Gives the path of the manifest,
    and what became of the classes.

    Raises ConfigError where members or classes do not go together, and where a key would come twice in a
    split.
    """
    forget()
    manifests = [opened(source) for source in sources]
    _refuse_other_members(sources, manifests)
    tables = reconciled(sources, manifests)
    splits = by_split(sources, lambda own, key: own or "train", prefixed)
    for split, items in splits.items():
        _refuse_twice(split, items, sources)
    make = partial(_copied, sources=tuple(sources), tables=tables.numbers)
    jobs = shuffled_jobs(splits, make, shard_size=shard_size, seed=seed, kind="merge")
    names = {"classes": tables.classes, "mask_classes": tables.mask_classes}
    noise = tuple(dict.fromkeys(note for own in manifests for note in own.label_noise))
    return write_shards(jobs, out, **names, label_noise=noise, workers=workers), tables


def forget() -> None:
    """Sets may have changed since they were opened."""
    opened.cache_clear()
    reader_of.cache_clear()
    _members_by_key.cache_clear()


def by_split(
    sources: Sequence[str], split_of: Callable[[str, str], str], prefixed: bool = False
) -> dict[str, Sequence[Stored]]:
    """Split -> the samples of it, on the disk, in the order of the sets. split_of: of (stored split, key)."""
    found = {
        split_of(str(shard.split), key) for source in sources for shard, _, _, key in _samples_of(source)
    }

    def items(split: str) -> Iterator[Stored]:
        for number, source in enumerate(sources):
            for shard, at, sample, key in _samples_of(source):
                if split_of(shard.split, key) == split:
                    yield Stored(number, at, sample, f"{number}/{key}" if prefixed else key)

    return {split: ItemFile(items(split), Stored) for split in sorted(found)}


def _samples_of(source: str) -> Iterator[tuple[Shard, int, int, str]]:
    """(shard, its number, number of the sample, key) of each sample of a set."""
    manifest, reader = opened(source), reader_of(source)
    for at, shard in enumerate(manifest.shards):
        for sample in range(shard.num_samples):
            yield shard, at, sample, reader.key(at, sample)


@lru_cache(maxsize=8)
def reader_of(source: str) -> SampleReader:
    return SampleReader(opened(source), 4, default_cache(), PATIENCE)


def _copied(
    items: Sequence[Stored], sources: Sequence[str], tables: Sequence[Sequence[int] | None]
) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    """Key and members of each sample. tables: of each set, the new number of each label; None: as it was.
    Raises SampleError for a label that is none."""
    for item in items:
        members = reader_of(sources[item.source]).read(item.shard, item.sample)
        if (table := tables[item.source]) is not None:
            try:
                for own in {"cls", TRUE_CLASS} & members.keys():
                    members[own] = str(table[decode_class(members[own], len(table))]).encode()
                if "json" in members:
                    members["json"] = renumbered(members["json"], table)
            except SampleError as err:
                raise SampleError(f"{sources[item.source]}, sample '{item.key}': {err}") from err
        yield item.key, members


def _refuse_twice(split: str, items: Sequence[Stored], sources: Sequence[str]) -> None:
    seen: dict[str, int] = {}
    for item in items:
        if (first := seen.setdefault(item.key, item.source)) != item.source:
            raise ConfigError(
                f"the key '{item.key}' of split '{split}' is in {sources[first]} and in "
                f"{sources[item.source]}; give --prefix, and keys begin with the number of their set"
            )


def _refuse_other_members(sources: Sequence[str], manifests: Sequence[Manifest]) -> None:
    kinds = [{kind_of(suffix) for suffix in one.schema} for one in manifests]
    for source, own in zip(sources, kinds, strict=True):
        if own != kinds[0]:
            raise ConfigError(
                f"{sources[0]} has the members {', '.join(sorted(kinds[0]))} and {source} has "
                f"{', '.join(sorted(own))}; merge sets of one kind"
            )
