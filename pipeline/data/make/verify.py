"""Reads whole shards again, and lists everything that is wrong with them."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from torch import Tensor

from pipeline.data.members.clips import VIDEOS, kind_of
from pipeline.data.members.decode import DECODERS, decode_class, decode_image
from pipeline.data.members.masks import LabelHistogram, label_counts, strange_labels
from pipeline.data.members.turns import UPRIGHT, turn_of, turned_with_mask
from pipeline.data.members.video import check_video
from pipeline.data.shards.cache import default_cache
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.index import ShardIndex
from pipeline.data.shards.indexes import load_index
from pipeline.data.shards.label_noise import TRUE_CLASS
from pipeline.data.shards.locations import is_remote
from pipeline.data.shards.manifest import Manifest
from pipeline.data.shards.patience import PATIENCE
from pipeline.data.shards.present import check_shards
from pipeline.data.shards.reader import SampleReader
from pipeline.data.shards.storage import download
from pipeline.data.shards.table import Shard
from pipeline.data.shards.tar_index import index_tar
from pipeline.errors import SampleError, StorageError
from pipeline.files import sha256_of

Mapper = Callable[[Callable[[int], "ShardReport"], Sequence[int]], Iterable["ShardReport"]]


@dataclass(frozen=True)
class ShardReport:
    """What one shard holds, and what is wrong with it."""

    name: str
    num_samples: int
    keys: tuple[str, ...]
    problems: tuple[str, ...]
    """A line each, which names the shard and, if it is a sample's, the key."""
    histogram: LabelHistogram
    damaged: frozenset[int] = frozenset()
    """Numbers of the samples that something is wrong with."""


@dataclass(frozen=True)
class Verified:
    """What a set of shards holds, and what is wrong with it."""

    num_samples: int
    problems: tuple[str, ...]
    histogram: LabelHistogram
    """Labels of the masks that decode; empty after a quick check."""
    mask_names: tuple[str, ...]
    """Names of the labels 0, 1, ..."""


def verify(source: str, *, quick: bool, mapper: Mapper = map) -> Verified:
    """Checks sizes, hashes, tar structure and members of shards; unless quick, also that every member decodes
    and every mask fits its image. mapper: a `map` that may use several processes. A remote shard is
    downloaded for it, and not kept. Of a set in files of its own, the files are read.

    Raises SampleError for a manifest that does not fit its shards.
    """
    opened.cache_clear()
    manifest = opened(source)
    numbers = range(len(manifest.shards))
    written = [number for number in numbers if manifest.shards.loose(number) is None]
    check_shards(manifest.shards.take(written))
    reports = list(mapper(partial(_verify_numbered, source, quick), numbers))
    problems = [problem for report in reports for problem in report.problems]
    if "seg.png" in manifest.schema and not manifest.mask_names:
        problems.append(
            f"{source}: the classes of its masks have no names; list them in classes.json, and make the "
            "manifest anew"
        )
    histogram = sum((report.histogram for report in reports), LabelHistogram.empty())
    num_samples = sum(report.num_samples for report in reports)
    return Verified(num_samples, (*problems, *_repeated(reports)), histogram, manifest.mask_names)


@lru_cache(maxsize=8)
def opened(source: str) -> Manifest:
    """The manifest, which forked processes share."""
    return load_manifest(source, checked=False)


def _verify_numbered(source: str, quick: bool, number: int) -> ShardReport:
    manifest = opened(source)
    if manifest.shards.loose(number) is not None:
        return _verify_loose(manifest, quick, number)
    shard = manifest.shards[number]
    if not is_remote(shard.url):
        return verify_shard(manifest, quick, shard)
    with TemporaryDirectory(prefix="dtem-") as scratch:
        path = Path(scratch, shard.name)
        download(shard.url, path)
        found = verify_shard(manifest, quick, replace(shard, url=str(path)))
    return replace(found, problems=tuple(line.replace(str(path), shard.url) for line in found.problems))


def _verify_loose(manifest: Manifest, quick: bool, number: int) -> ShardReport:
    """The report of samples in files of their own. That the files are there was seen when they were
    listed."""
    checker, reader = _Checker(manifest), SampleReader(manifest, 1, default_cache(), PATIENCE)
    shard = manifest.shards[number]
    keys = tuple(reader.key(number, sample) for sample in range(shard.num_samples))
    found: list[tuple[int, str]] = []
    for sample, key in enumerate(() if quick else keys):
        where = f"{shard.name}, sample '{key}'"
        try:
            members = reader.read(number, sample)
            found += [(sample, f"{where}, {problem}") for problem in checker.problems(members.items())]
        except (SampleError, StorageError) as err:
            found.append((sample, f"{where}: {err}"))
    return _report_of(shard, keys, [], found, checker.histogram)


def _report_of(
    shard: Shard,
    keys: tuple[str, ...],
    problems: Sequence[str],
    found: Sequence[tuple[int, str]],
    histogram: LabelHistogram,
) -> ShardReport:
    lines = (*problems, *(line for _, line in found))
    return ShardReport(shard.name, len(keys), keys, lines, histogram, frozenset(at for at, _ in found))


def verify_shard(
    manifest: Manifest, quick: bool, shard: Shard, read: Callable[[str], ShardIndex] = index_tar
) -> ShardReport:
    """The report of a local shard of the manifest. read: finds the samples of a tar; raises SampleError."""
    problems = list(_file_problems(shard))
    try:
        index = read(shard.url)
    except SampleError as err:
        return ShardReport(shard.name, 0, (), (*problems, f"{shard.name}: {err}"), LabelHistogram.empty())
    try:
        if index.to_bytes() != load_index(shard, default_cache()).to_bytes():
            problems.append(f"{shard.name}: its samples are not those of its index; make the manifest anew")
    except StorageError as err:
        problems.append(f"{shard.name}: {err}")
    checker = _Checker(manifest)
    found = list(_sample_problems(checker, shard, index, quick))
    return _report_of(shard, index.keys, problems, found, checker.histogram)


def _file_problems(shard: Shard) -> Iterator[str]:
    if not shard.sha256:
        yield (
            f"{shard.name}: no manifest says what its sha256 should be; make one: `dtem shards make "
            f"index {Path(shard.url).parent}`"
        )
    elif sha256_of(shard.url) != shard.sha256:
        yield f"{shard.name}: its sha256 is not the manifest's; its bytes have changed"


def _sample_problems(
    checker: "_Checker", shard: Shard, index: ShardIndex, quick: bool
) -> Iterator[tuple[int, str]]:
    """(number of a sample, a line about it)."""
    with open(shard.url, "rb") as file:
        for sample, key in enumerate(index.keys):
            where = f"{shard.name}, sample '{key}'"
            members = index.members(sample)
            if lacks := checker.lacking(members):
                yield sample, f"{where}: has no {', '.join(lacks)}"
            if not quick:
                found = checker.problems(_read(file, members))
                yield from ((sample, f"{where}, {problem}") for problem in found)


def _read(file: BinaryIO, members: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, bytes]]:
    for suffix, (offset, size) in members.items():
        file.seek(offset)
        yield suffix, file.read(size)


class _Checker:
    """Decodes the samples of a shard one after the other, and counts the labels of their masks."""

    def __init__(self, manifest: Manifest):
        self.histogram = LabelHistogram.empty()
        self._needed = {kind_of(suffix) for suffix in manifest.schema}
        self._num_classes, self._num_labels = len(manifest.classes), len(manifest.mask_names)

    def lacking(self, suffixes: Iterable[str]) -> list[str]:
        """Kinds of members that the manifest has and a sample with these suffixes lacks."""
        return sorted(self._needed - {kind_of(suffix) for suffix in suffixes})

    def problems(self, members: Iterable[tuple[str, bytes]]) -> Iterator[str]:
        """A line for each problem of one sample. members: (suffix, bytes) of each."""
        pixels: dict[str, Tensor] = {}
        turn = UPRIGHT
        for suffix, data in members:
            try:
                value = self._decode(suffix, data)
            except SampleError as err:
                yield f"{suffix}: {err}"
                continue
            if isinstance(value, Tensor):
                pixels[kind_of(suffix)] = value
                turn = turn_of(data) if kind_of(suffix) == "image" else turn
            if suffix == "seg.png":
                yield from self._strange_labels(value)
        if pixels.keys() >= {"image", "seg.png"}:
            try:
                turned_with_mask(pixels["image"], pixels["seg.png"], turn)
            except SampleError as err:
                yield f"seg.png: {err}"

    def _decode(self, suffix: str, data: bytes) -> Any:
        if kind_of(suffix) in ("image", "frame"):
            return decode_image(data, upright=False)
        if suffix in VIDEOS:
            return check_video(data, suffix)
        if suffix in ("cls", TRUE_CLASS):
            return decode_class(data, self._num_classes)
        return DECODERS[suffix](data) if suffix in DECODERS else None

    def _strange_labels(self, mask: Tensor) -> Iterator[str]:
        counts = label_counts(mask.numpy())
        self.histogram = self.histogram.with_mask(counts)
        if self._num_labels and (strange := strange_labels(counts, self._num_labels)):
            yield f"seg.png: {strange}"


def _repeated(reports: Sequence[ShardReport]) -> Iterator[str]:
    """Lines about keys that are in two shards of one split (the name of a shard before its last number)."""
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
    yield from (
        f"split '{split}': {count} repeated keys in all" for split, count in counts.items() if count > 20
    )
