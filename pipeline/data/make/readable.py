"""Sets whose tars may be damaged, as far as they can be read."""

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from pipeline.data.make.verify import opened
from pipeline.data.shards.describe import count_classes, described_by, manifest_of, read_names
from pipeline.data.shards.locations import (
    expand,
    is_remote,
    join,
    local_shards,
    sets_of,
    split,
    split_folders,
)
from pipeline.data.shards.loose import loose_of
from pipeline.data.shards.manifest import MANIFEST, UNFINISHED, Manifest
from pipeline.data.shards.tar_index import index_of_readable
from pipeline.errors import SampleError


@lru_cache(maxsize=8)
def readable_set(source: str) -> tuple[Manifest, tuple[str, ...]]:
    """The set, which forked processes share, and a line about each tar of which nothing can be read.

    Where there is no manifest, and a tar is cut off or has no sample, the manifest is of what comes before
    the damage. Raises SampleError for a set that cannot be opened for another reason.
    """
    try:
        return opened(source), ()
    except SampleError:
        tars = dict(_bare_tars(source))
        if not tars:
            raise
        described, unread = [], []
        for tar, word in tars.items():
            try:
                index = index_of_readable(tar)
            except SampleError as err:
                unread.append(str(err))
                continue
            found = described_by(tar, index, os.path.getsize(tar), "", count_classes(tar, index))
            shard = replace(found.shard, index_url="", split=word or found.shard.split)
            described.append(replace(found, shard=shard))
        if not described:
            raise
    return manifest_of(described, read_names(split(next(iter(tars)))[0])), tuple(unread)


def _bare_tars(source: str) -> Iterator[tuple[str, str]]:
    """(tar, its split) of a local set; nothing where a manifest says what is in it, or it is not of tars."""
    found: list[tuple[str, str]] = []
    for name in sets_of(source):
        if loose_of(name) is not None or is_remote(name):
            return
        for location in expand(name):
            found += _tars_in(location)
    folders = {split(tar)[0] for tar, _ in found}
    if not any(os.path.exists(join(folder, mark)) for folder in folders for mark in (MANIFEST, UNFINISHED)):
        yield from found


def _tars_in(location: str) -> list[tuple[str, str]]:
    if location.endswith(".tar"):
        return [(location, "")]
    inside = {"": location} if local_shards(location) else split_folders(location)
    return [(tar, word) for word, folder in inside.items() for tar in local_shards(folder)]
