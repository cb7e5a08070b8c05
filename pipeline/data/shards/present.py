"""Whether shards are there as their manifest says."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipeline.data.shards.locations import is_remote, split
from pipeline.data.shards.manifest import Manifest, remedy
from pipeline.data.shards.storage import file_size
from pipeline.data.shards.table import Shard, ShardTable
from pipeline.errors import SampleError, first_few

SAMPLED = 32
"""Shards whose sizes are looked at before a run; a wrong one among the others is found when it is opened."""
READERS = 16
"""Threads that wait for answers of the storage."""


def check_sample(manifest: Manifest) -> None:
    """Raises SampleError unless SAMPLED shards, the first and the last among them, are there with the size in
    the manifest, and local ones with their index."""
    chosen = np.unique(np.linspace(0, len(manifest.shards) - 1, SAMPLED).round().astype(int))
    # loose files were just listed
    check_shards(manifest.shards.take([n for n in chosen.tolist() if manifest.shards.loose(n) is None]))


def check_shards(shards: ShardTable) -> None:
    """Raises SampleError that names the shards that are not as their manifest says."""
    with ThreadPoolExecutor(READERS) as pool:
        problems = [problem for problem in pool.map(_problem, shards) if problem]
    if problems:
        folder = split(shards.url(0))[0]
        raise SampleError(
            f"shards do not match their manifest: {first_few(problems)}. Restore them, or: {remedy(folder)}"
        )


def _problem(shard: Shard) -> str:
    index = shard.index_url
    if index and not is_remote(index) and not os.path.isfile(index):
        return f"{index} is missing"
    try:
        size = file_size(shard.url)
    except FileNotFoundError:
        return f"{shard.url} is missing"
    return "" if size == shard.num_bytes else f"{shard.url} has {size} bytes instead of {shard.num_bytes}"
