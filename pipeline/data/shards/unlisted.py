"""Local shards that no manifest lists: their manifest is made from what they hold, once on each machine."""

import hashlib
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from pipeline.data.shards.cache import ShardCache, default_cache
from pipeline.data.shards.describe import CLASSES, Described, describe_tar, manifest_of, read_names
from pipeline.data.shards.index import SUFFIX
from pipeline.data.shards.locations import join, split
from pipeline.data.shards.manifest import Manifest, parse_manifest, remedy
from pipeline.data.shards.present import READERS

log = logging.getLogger(__name__)


def index_now(tars: list[str], cache: ShardCache | None) -> Manifest:
    """The manifest of local shards that have none. It is kept in the cache, with their indexes, for as long
    as the names, sizes and times of the shards are the same."""
    folder = split(tars[0])[0]
    _warn_once(folder)
    cache = cache or default_cache()
    states = [(os.path.realpath(path), _state(path)) for path in (*tars, join(folder, CLASSES))]
    key = hashlib.sha256(json.dumps(states).encode()).hexdigest()
    return cache.kept(
        f"{key[:32]}.manifest",
        lambda: _indexed(tars, folder, cache).to_json(None),
        lambda data: parse_manifest(bytes(data), folder, indexed=False),
    )


@lru_cache(maxsize=64)
def _warn_once(folder: str) -> None:
    log.warning(
        "%s has no manifest: each machine indexes its shards, and again when one has changed. Once and for "
        "all: %s",
        folder,
        remedy(folder),
    )


def _state(path: str) -> tuple[int, int] | None:
    """Size and time of a file, by which a changed file is known; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _indexed(tars: list[str], folder: str, cache: ShardCache) -> Manifest:
    def one(tar: str) -> Described:
        described, index = describe_tar(tar, hashed=False)
        cache.kept(f"{described.shard.index_sha256[:32]}{SUFFIX}", lambda: index, bytes)
        return described

    with ThreadPoolExecutor(READERS) as pool:
        return manifest_of(pool.map(one, tars), read_names(folder))
