"""Finds the manifest of what a user names as data, and checks it against the shards before training."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial

from pipeline.data.describe import describe
from pipeline.data.manifest_format import MANIFEST, Manifest, Shard, parse_manifest, remedy
from pipeline.data.source import expand, is_remote, join, local_shards, split
from pipeline.data.storage import file_size, read_bytes
from pipeline.errors import SampleError

log = logging.getLogger(__name__)


def load_manifest(source: str | Sequence[str], subset: str | None = None) -> Manifest:
    """The manifest of a folder, brace pattern, list of tars, or URL of those; checked against the sizes of the shards.

    subset: of a folder that holds `train-*` and `val-*` shards, take those of one split. Local shards without a manifest are indexed
    in memory. Anything that does not fit raises SampleError.
    """
    names = [source] if isinstance(source, str) else list(source)
    locations = [location for name in names for location in expand(name)]
    if not locations:
        raise SampleError("no shards are given: give a folder, a pattern such as 'train-{00000..00008}.tar', or a list of tars")
    parts = [_load_tars(group) if group[0].endswith(".tar") else _load_folder(group[0], subset) for group in _groups(locations)]
    manifest = _joined(parts)
    _check_files(manifest)
    return manifest


def _groups(locations: list[str]) -> list[list[str]]:
    """Neighbouring tars of one folder together; each folder alone."""
    groups: list[list[str]] = []
    for location in locations:
        alone = not location.endswith(".tar")
        same = groups and not alone and groups[-1][0].endswith(".tar") and split(groups[-1][0])[0] == split(location)[0]
        if same:
            groups[-1].append(location)
        else:
            groups.append([location])
    return groups


def _load_folder(folder: str, subset: str | None) -> Manifest:
    manifest = _read_manifest(folder)
    if manifest is None:
        if is_remote(folder):
            raise _no_manifest(folder)
        tars = local_shards(folder)
        if not tars:
            raise SampleError(f"{folder}: no manifest and no .tar in it; make shards with `dtem shards make --help`")
        return _index_now([tar for tar in tars if _in_subset(tar, subset, tars)])
    names = [shard.name for shard in manifest.shards]
    return replace(manifest, shards=tuple(shard for shard in manifest.shards if _in_subset(shard.name, subset, names)))


def _in_subset(name: str, subset: str | None, names: Sequence[str]) -> bool:
    """Shards of another split stay out; a folder whose shards name no split is one set."""
    prefixes = ("train-", "val-")
    named = any(split(other)[1].startswith(prefixes) for other in names)
    return subset is None or not named or split(name)[1].startswith(f"{subset}-")


def _load_tars(tars: list[str]) -> Manifest:
    folder = split(tars[0])[0]
    manifest = _read_manifest(folder)
    if manifest is None:
        if is_remote(folder):
            raise _no_manifest(folder)
        return _index_now(tars)
    known = {shard.name: shard for shard in manifest.shards}
    missing = [tar for tar in tars if split(tar)[1] not in known]
    if missing:
        count = f"{missing[0]} ({len(missing)} such shards)"
        raise SampleError(f"{join(folder, MANIFEST)} does not list {count}; make it anew: {remedy(folder)}")
    return replace(manifest, shards=tuple(known[split(tar)[1]] for tar in tars))


def _read_manifest(folder: str) -> Manifest | None:
    location = join(folder, MANIFEST)
    try:
        return parse_manifest(read_bytes(location), folder)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise SampleError(f"{location}: {err or type(err).__name__}; make it anew: {remedy(folder)}") from err


@lru_cache(maxsize=64)
def _say_once(folder: str) -> None:
    log.warning("%s has no manifest: its shards are indexed in memory at every start. Once and for all: %s", folder, remedy(folder))


def _index_now(tars: list[str]) -> Manifest:
    _say_once(split(tars[0])[0])
    return describe(tars, hashes=False)


def _joined(parts: list[Manifest]) -> Manifest:
    first = parts[0]
    if any((part.classes, part.mask_classes) != (first.classes, first.mask_classes) for part in parts):
        raise SampleError("the shards come from sets with different classes; give shards of one set")
    shards = tuple(shard for part in parts for shard in part.shards)
    if not shards:
        raise SampleError("the folder has no shard of this split; name the shards by a pattern, for instance 'FOLDER/part-{000..012}.tar'")
    schema = tuple(sorted({suffix for part in parts for suffix in part.schema}))
    indexes = {url: index for part in parts for url, index in part.indexes.items()}
    return Manifest(shards, schema, first.classes, first.mask_classes, indexes)


def _check_files(manifest: Manifest) -> None:
    """Every shard is there, once, with the bytes that the manifest says; local ones with their index."""
    urls = [shard.url for shard in manifest.shards]
    if len(set(urls)) != len(urls):
        raise SampleError(f"shard {next(url for url in urls if urls.count(url) > 1)} is given twice")
    with ThreadPoolExecutor(16) as pool:
        problems = [problem for problem in pool.map(partial(_problem, manifest), manifest.shards) if problem]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        folder = split(urls[0])[0]
        raise SampleError(f"shards do not match their manifest: {'; '.join(problems[:5])}{more}. Restore them, or: {remedy(folder)}")


def _problem(manifest: Manifest, shard: Shard) -> str:
    if shard.url not in manifest.indexes and not is_remote(shard.index_url) and not os.path.isfile(shard.index_url):
        return f"{shard.index_url} is missing"
    try:
        size = file_size(shard.url)
    except FileNotFoundError:
        return f"{shard.url} is missing"
    return "" if size == shard.num_bytes else f"{shard.url} has {size} bytes instead of {shard.num_bytes}"


def _no_manifest(folder: str) -> SampleError:
    command = f"dtem shards make index '{folder}/PATTERN.tar' OUT"
    return SampleError(f"{folder} has no {MANIFEST}, which remote shards need; `{command}` makes one in OUT, which is then the source")
