"""Finds the index of a shard: beside it, in the cache, or made from the tar."""

import hashlib

from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.index import SUFFIX, Buffer, ShardIndex, parse_index
from pipeline.data.shards.locations import is_remote
from pipeline.data.shards.manifest import remedy
from pipeline.data.shards.patience import PATIENCE, storage_error
from pipeline.data.shards.storage import read_bytes
from pipeline.data.shards.table import Shard
from pipeline.data.shards.tar_index import index_tar
from pipeline.errors import SampleError, StorageError


def load_index(shard: Shard, cache: ShardCache, patience: float | None = None) -> ShardIndex:
    """The index of a shard. Raises StorageError where it cannot be read for `patience` seconds, and at once
    where a local file is not the index that the manifest names.

    That of a remote shard, or of one without an index of its own, comes into the cache and is mapped into
    memory from there. A local one is read: a file on a disk of others may be cut off while it is mapped,
    which would end the process.
    """
    where = shard.index_url or shard.url
    try:
        if shard.index_url and not is_remote(shard.index_url):
            return _parsed(read_bytes(shard.index_url, patience), shard)
        return _cached(shard, cache, patience)
    except OSError as err:
        raise storage_error(f"index {where}", err) from err
    except (SampleError, ValueError) as err:
        raise StorageError(f"index {where}: {err}; make it anew: {remedy(shard.url)}") from err


def _cached(shard: Shard, cache: ShardCache, patience: float | None) -> ShardIndex:
    name = f"{shard.index_sha256[:32]}{SUFFIX}"

    def make() -> bytes:
        try:
            if shard.index_url:
                return read_bytes(shard.index_url, patience, shard.index_sha256)
        except FileNotFoundError as err:
            raise storage_error(shard.index_url, err) from err
        data = index_tar(shard.url).to_bytes()
        if hashlib.sha256(data).hexdigest() != shard.index_sha256:
            raise ValueError("the samples of the shard are others than before; start anew")
        return data

    return cache.kept(name, make, lambda data: _parsed(data, shard), _seconds(patience))


def _seconds(patience: float | None) -> float:
    return PATIENCE if patience is None else patience


def _parsed(data: Buffer, shard: Shard) -> ShardIndex:
    return parse_index(data, shard.num_bytes, shard.num_samples, shard.index_sha256)
