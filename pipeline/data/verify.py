"""Reads whole shards again and lists everything that is wrong with them."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.data.decode import DECODERS, IMAGES, decode_class
from pipeline.data.manifest import load_manifest
from pipeline.data.manifest_format import Manifest, Shard
from pipeline.data.source import is_remote
from pipeline.data.storage import sha256_of
from pipeline.data.tarindex import ShardIndex, index_tar
from pipeline.errors import SampleError

Mapper = Callable[[Callable[[int], "ShardReport"], Sequence[int]], Iterable["ShardReport"]]


@dataclass(frozen=True)
class ShardReport:
    """problems: one line each, which names the shard and, where there is one, the key."""

    name: str
    num_samples: int
    keys: tuple[str, ...]
    problems: tuple[str, ...]


def verify(source: str, *, quick: bool, mapper: Mapper = map) -> tuple[int, list[str]]:
    """(samples seen, problems) of local shards: sizes, hashes, tar structure, members, and (unless quick) that every member decodes."""
    manifest = load_manifest(source)
    if is_remote(manifest.shards[0].url):
        raise SampleError(f"{source}: verify reads local shards; copy them here first (streaming checks the sha256 of each download)")
    reports = list(mapper(partial(_verify_shard, manifest, quick), range(len(manifest.shards))))
    problems = [problem for report in reports for problem in report.problems]
    return sum(report.num_samples for report in reports), problems + list(_repeated(reports))


def _verify_shard(manifest: Manifest, quick: bool, number: int) -> ShardReport:
    shard = manifest.shards[number]
    problems = list(_file_problems(shard))
    try:
        index = index_tar(shard.url)
        if index.to_json() != manifest.index(number).to_json():
            problems.append(f"{shard.name}: its samples are not those of its index; make the manifest anew")
    except SampleError as err:
        return ShardReport(shard.name, 0, (), (*problems, f"{shard.name}: {err}"))
    problems += _sample_problems(manifest, shard, index, quick)
    return ShardReport(shard.name, len(index.keys), index.keys, tuple(problems))


def _file_problems(shard: Shard) -> Iterator[str]:
    if not shard.sha256:
        yield f"{shard.name}: no manifest says what its sha256 should be; make one: `dtem shards make index {Path(shard.url).parent}`"
    elif sha256_of(shard.url) != shard.sha256:
        yield f"{shard.name}: its sha256 is not the manifest's; its bytes have changed"


def _sample_problems(manifest: Manifest, shard: Shard, index: ShardIndex, quick: bool) -> Iterator[str]:
    needed = {_kind(suffix) for suffix in manifest.schema}
    with open(shard.url, "rb") as file:
        for sample, key in enumerate(index.keys):
            members = index.members(sample)
            if lacks := sorted(needed - {_kind(suffix) for suffix in members}):
                yield f"{shard.name}, sample '{key}': has no {', '.join(lacks)}"
            for suffix, (offset, size) in () if quick else members.items():
                file.seek(offset)
                if problem := _decode_problem(suffix, file.read(size), len(manifest.classes)):
                    yield f"{shard.name}, sample '{key}', {suffix}: {problem}"


def _decode_problem(suffix: str, data: bytes, num_classes: int) -> str:
    try:
        if suffix == "cls":
            decode_class(data, num_classes)
        elif suffix in DECODERS:
            DECODERS[suffix](data)
    except SampleError as err:
        return str(err)
    return ""


def _kind(suffix: str) -> str:
    return "image" if suffix in IMAGES else suffix


def _repeated(reports: Sequence[ShardReport]) -> Iterator[str]:
    """Keys that stand in two shards of one split (the part of the name before its last number)."""
    seen: dict[tuple[str, str], str] = {}
    counts: Counter[str] = Counter()
    for report in reports:
        split = report.name.rpartition("-")[0]
        for key in report.keys:
            first = seen.setdefault((split, key), report.name)
            if first != report.name:
                counts[split] += 1
                if counts[split] <= 20:
                    yield f"{report.name}, sample '{key}': the key is also in {first}"
    yield from (f"split '{split}': {count} repeated keys in all" for split, count in counts.items() if count > 20)
