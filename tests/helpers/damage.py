"""Shards with samples that cannot be read, of the same names, sizes and indexes as good ones."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from pipeline.data.shards.cache import default_cache
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.indexes import load_index


def damaged(folder: Path, out: Path, members: Mapping[tuple[str, int], str]) -> Path:
    """A copy of a folder of shards in which the named member, by (shard, sample), is noise."""
    shutil.copytree(folder, out)
    manifest = load_manifest(str(out))
    shards = {shard.name: shard for shard in manifest.shards}
    for (shard, sample), suffix in members.items():
        offset, size = load_index(shards[shard], default_cache()).members(sample)[suffix]
        with open(out / shard, "r+b") as file:
            file.seek(offset)
            file.write(b"\xfe" * size)
    return out
