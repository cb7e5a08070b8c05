"""Finds the manifest of what a user names as data, and checks it against the shards before training."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from typing import TypeVar

from pipeline.data.shards.describe import CLASSES, describe
from pipeline.data.shards.locations import expand, is_remote, join, local_shards, split, tar_names
from pipeline.data.shards.manifest import MANIFEST, Manifest, Shard, parse_manifest, remedy
from pipeline.data.shards.splits import split_of
from pipeline.data.shards.storage import file_size, read_bytes
from pipeline.errors import SampleError, first_few

log = logging.getLogger(__name__)
T = TypeVar("T")


def load_manifest(
    source: str | Sequence[str], subset: str | None = None, *, checked: bool = True
) -> Manifest:
    """The manifest of a folder, brace pattern, list of tars, or URL of those.

    subset: the split to take from a folder whose shards name their splits. A folder in which no shard does is
    one set; tars and patterns are taken as given. Local shards without a manifest are indexed in memory.
    checked: whether the sizes of the shards are compared with the manifest's. Raises SampleError for anything
    that does not fit.
    """
    names = [source] if isinstance(source, str) else list(source)
    locations = [location for name in names for location in expand(name)]
    if not locations:
        raise SampleError(
            "no shards are given: give a folder, a pattern such as 'train-{00000..00008}.tar', or a "
            "list of tars"
        )
    parts = [
        _load_tars(group) if group[0].endswith(".tar") else _load_folder(group[0], subset)
        for group in _groups(locations)
    ]
    manifest = _joined(parts)
    if checked:
        _check_files(manifest)
    return manifest


def split_named(source: str | Sequence[str], subset: str) -> Manifest:
    """The shards of `source` that name the split themselves. Raises SampleError that lists the splits where
    none does."""
    whole = load_manifest(source, checked=False)
    chosen = tuple(shard for shard in whole.shards if shard.split == subset)
    if not chosen:
        raise SampleError(
            f"{source} has no shard of split '{subset}'; {_counted(shard.split for shard in whole.shards)}"
        )
    manifest = replace(whole, shards=chosen)
    _check_files(manifest)
    return manifest


def _groups(locations: list[str]) -> list[list[str]]:
    """Locations that are read together: neighbouring tars of one folder, or one folder."""
    groups: list[list[str]] = []
    for location in locations:
        before = groups[-1][0] if groups else ""
        tars = before.endswith(".tar") and location.endswith(".tar")
        if tars and split(before)[0] == split(location)[0]:
            groups[-1].append(location)
        else:
            groups.append([location])
    return groups


def _load_folder(folder: str, subset: str | None) -> Manifest:
    manifest = _read_manifest(folder)
    if manifest is None:
        tars = local_shards(folder)
        if not tars:
            raise SampleError(
                f"{folder}: no manifest and no .tar in it; make shards with `dtem shards make --help`"
            )
        named = {tar: split_of(split(tar)[1]) for tar in tars}
        return _index_now(_of_split(named, subset, folder))
    if not is_remote(folder):
        _refuse_unlisted(folder, manifest)
    named = {shard: shard.split for shard in manifest.shards}
    return replace(manifest, shards=tuple(_of_split(named, subset, folder)))


def _refuse_unlisted(folder: str, manifest: Manifest) -> None:
    """Raises SampleError for tars beside the manifest that it does not list, for instance copied there later:
    nothing would read them."""
    listed = {shard.name for shard in manifest.shards}
    others = [join(folder, name) for name in tar_names(folder) if name not in listed]
    if others:
        raise SampleError(
            f"{join(folder, MANIFEST)} does not list {others[0]} ({len(others)} of the shards there); "
            f"make it anew: {remedy(folder)}. "
            "To do without them give a pattern of those that are meant, or take the others away"
        )


def _of_split(named: Mapping[T, str], subset: str | None, folder: str) -> list[T]:
    """The shards of one split; all of them where no shard names a split. named: maps a shard to the split
    that it names, which may be empty."""
    there = set(named.values())
    if subset is None or there == {""}:
        return list(named)
    if subset in there and "" not in there:
        return [shard for shard, own in named.items() if own == subset]
    why = "cannot be divided into splits" if subset in there else f"has no shard of split '{subset}'"
    raise SampleError(
        f"{folder} {why}: {_counted(named.values())}. Give the shards by a pattern, for instance "
        f"'{folder}/part-{{000..012}}.tar', or make the set anew with this split (`dtem shards make --help`)"
    )


def _counted(splits: Iterable[str]) -> str:
    """`2 shards name train, 1 names none`"""
    counts = sorted(Counter(splits).items())
    return ", ".join(
        f"{count} {'shard names' if count == 1 else 'shards name'} {own or 'no split'}"
        for own, count in counts
    )


def _load_tars(tars: list[str]) -> Manifest:
    folder = split(tars[0])[0]
    manifest = _read_manifest(folder)
    if manifest is None:
        return _index_now(tars)
    known = {shard.name: shard for shard in manifest.shards}
    missing = [tar for tar in tars if split(tar)[1] not in known]
    if missing:
        count = f"{missing[0]} ({len(missing)} such shards)"
        raise SampleError(f"{join(folder, MANIFEST)} does not list {count}; make it anew: {remedy(folder)}")
    return replace(manifest, shards=tuple(known[split(tar)[1]] for tar in tars))


def _read_manifest(folder: str) -> Manifest | None:
    """None where a local folder has none. Raises SampleError for a remote one without, and for one that does
    not read."""
    location = join(folder, MANIFEST)
    try:
        return parse_manifest(read_bytes(location), folder)
    except FileNotFoundError:
        if is_remote(folder):
            raise _no_manifest(folder) from None
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise SampleError(f"{location}: {err or type(err).__name__}; make it anew: {remedy(folder)}") from err


@lru_cache(maxsize=64)
def _warn_once(folder: str) -> None:
    log.warning(
        "%s has no manifest: its shards are indexed in memory at every start. Once and for all: %s",
        folder,
        remedy(folder),
    )


def _index_now(tars: list[str]) -> Manifest:
    folder = split(tars[0])[0]
    _warn_once(folder)
    return _indexed(tuple(tars), tuple(_state(path) for path in (*tars, join(folder, CLASSES))))


def _state(path: str) -> tuple[int, int] | None:
    """Size and time of a file, by which a changed file is known; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=8)
def _indexed(tars: tuple[str, ...], states: tuple[tuple[int, int] | None, ...]) -> Manifest:
    return describe(tars, hashes=False)


def _joined(parts: list[Manifest]) -> Manifest:
    first = parts[0]
    if any((part.classes, part.mask_classes) != (first.classes, first.mask_classes) for part in parts):
        raise SampleError("the shards come from sets with different classes; give shards of one set")
    shards = tuple(shard for part in parts for shard in part.shards)
    schema = tuple(sorted({suffix for part in parts for suffix in part.schema}))
    indexes = {url: index for part in parts for url, index in part.indexes.items()}
    return Manifest(shards, schema, first.classes, first.mask_classes, indexes)


def _check_files(manifest: Manifest) -> None:
    """Raises SampleError unless every shard is there, once, with the size in the manifest, and local ones
    with their index."""
    urls = [shard.url for shard in manifest.shards]
    url, count = Counter(urls).most_common(1)[0]
    if count > 1:
        raise SampleError(f"shard {url} is given twice")
    with ThreadPoolExecutor(16) as pool:
        problems = [problem for problem in pool.map(partial(_problem, manifest), manifest.shards) if problem]
    if problems:
        folder = split(urls[0])[0]
        raise SampleError(
            f"shards do not match their manifest: {first_few(problems)}. Restore them, or: {remedy(folder)}"
        )


def _problem(manifest: Manifest, shard: Shard) -> str:
    if (
        shard.url not in manifest.indexes
        and not is_remote(shard.index_url)
        and not os.path.isfile(shard.index_url)
    ):
        return f"{shard.index_url} is missing"
    try:
        size = file_size(shard.url)
    except FileNotFoundError:
        return f"{shard.url} is missing"
    return "" if size == shard.num_bytes else f"{shard.url} has {size} bytes instead of {shard.num_bytes}"


def _no_manifest(folder: str) -> SampleError:
    command = f"dtem shards make index '{folder}/PATTERN.tar' OUT"
    return SampleError(
        f"{folder} has no {MANIFEST}, which remote shards need; `{command}` makes one in OUT, which is "
        "then the source"
    )
