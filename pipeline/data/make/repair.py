"""Writes a set anew without its damaged samples."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.data.make.readable import readable_set
from pipeline.data.make.verify import ShardReport, opened, verify_shard
from pipeline.data.make.write import ShardJob, write_shards
from pipeline.data.members.masks import LabelHistogram
from pipeline.data.shards.locations import is_remote
from pipeline.data.shards.manifest import Manifest
from pipeline.data.shards.tar_index import index_of_readable
from pipeline.errors import ConfigError

Mapper = Callable[[Callable[[int], ShardReport], Sequence[int]], Iterable[ShardReport]]


@dataclass(frozen=True)
class Repaired:
    """manifest: path of that of the new set."""

    manifest: Path
    kept: int
    left_out: tuple[str, ...]
    """A line about each sample that was left out, and about each shard with no other."""
    problems: tuple[str, ...]
    """What was wrong besides, by shard; its samples are kept where they read."""


def repair(source: str, out: Path, *, workers: int, mapper: Mapper = map) -> Repaired:
    """Writes the good samples of local shards into an empty or new folder, in shards of the same names; where
    two folders have one name, in numbered ones. A sample is damaged where `verify` has something against it,
    or where its key came before in its split. Of a tar that is cut off, what comes before the cut is read,
    also in a set without a manifest.

    Raises ConfigError for remote shards, for sets in files of their own, and where no sample is good.
    """
    opened.cache_clear()
    readable_set.cache_clear()
    manifest, unread = readable_set(source)
    if any(place.loose is not None or is_remote(place.root) for place in manifest.shards.places):
        raise ConfigError(
            f"{source}: repair reads local shards; copy remote ones here first, and make shards of files by "
            "`dtem shards make KIND SRC OUT --skip-bad`"
        )
    left_out = list(unread)
    problems: list[str] = []
    jobs: list[ShardJob] = []
    seen: set[tuple[str, str]] = set()
    reports = mapper(partial(_report, source), range(len(manifest.shards)))
    names = _names_of(manifest)
    for at, (shard, report) in enumerate(zip(manifest.shards, reports, strict=True)):
        about = [line for line in report.problems if ", sample '" in line]
        left_out += about
        problems += [line for line in report.problems if line not in about]
        good: list[int] = []
        for number, key in enumerate(report.keys):
            if number in report.damaged:
                continue
            if (shard.split, key) in seen:
                left_out.append(f"{shard.name}, sample '{key}': its key came before")
                continue
            seen.add((shard.split, key))
            good.append(number)
        if good:
            make = partial(_copied, path=os.path.abspath(shard.url))
            jobs.append(ShardJob(names[at], make, good, shard.split))
        else:
            left_out.append(f"{shard.name}: none of its samples is good; it is left out")
    if not jobs:
        raise ConfigError(f"{source}: none of its samples is good")
    classes = {"classes": manifest.classes, "mask_classes": manifest.mask_classes}
    path = write_shards(jobs, out, **classes, label_noise=manifest.label_noise, workers=workers)
    return Repaired(path, sum(len(job.items) for job in jobs), tuple(left_out), tuple(problems))


def _names_of(manifest: Manifest) -> list[str]:
    """The names of the new shards: their own, unless two of other folders have one name."""
    own = [shard.name for shard in manifest.shards]
    if len(set(own)) == len(own):
        return own
    return [f"{shard.split or 'part'}-{at:05d}.tar" for at, shard in enumerate(manifest.shards)]


def _report(source: str, number: int) -> ShardReport:
    manifest, _ = readable_set(source)
    shard = manifest.shards[number]
    if not os.path.isfile(shard.url):
        return ShardReport(shard.name, 0, (), (f"{shard.name}: it is missing",), LabelHistogram.empty())
    return verify_shard(manifest, False, shard, index_of_readable)


def _copied(numbers: Sequence[int], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    index = index_of_readable(path)
    with open(path, "rb") as file:
        for number in numbers:
            places = index.members(number).items()
            yield (
                index.key(number),
                {suffix: os.pread(file.fileno(), size, offset) for suffix, (offset, size) in places},
            )
