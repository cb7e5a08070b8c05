"""Manifests that are made of others."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.data.shards.cache import default_cache
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.index import ShardIndex
from pipeline.data.shards.indexes import load_index
from pipeline.data.shards.manifest import Manifest, write_manifest
from pipeline.data.shards.table import ShardTable


def write_derived(folder: Path, manifest: Manifest, root: str) -> None:
    """Writes a changed manifest of the shards in `root` into a folder of its own, with their indexes."""
    for shard in manifest.shards:
        shutil.copy(shard.index_url, folder)
    write_manifest(folder, manifest, root)


def as_before(folder: Path) -> Manifest:
    """Gives a folder of shards the manifest of format 1, and indexes in JSON, as sets had them before indexes
    were binary. Returns the manifest."""
    manifest = load_manifest(str(folder))
    shards = []
    for shard in manifest.shards:
        index = load_index(shard, default_cache())
        data = json_index(index)
        (folder / f"{shard.name}.index.json").write_bytes(data)
        (folder / f"{shard.name}.index").unlink()
        sha256 = hashlib.sha256(data).hexdigest()
        shards.append(replace(shard, index_sha256=sha256, index_url=f"{shard.url}.index.json"))
    old = replace(manifest, shards=ShardTable.of(shards))
    plain: dict[str, Any] = {"format": 1, "root": None, "schema": old.schema, "classes": old.classes}
    plain |= {"mask_classes": old.mask_classes} if old.mask_classes else {}
    fields = ("name", "split", "num_samples", "num_bytes", "sha256", "index_sha256")
    plain["shards"] = [{name: getattr(shard, name) for name in fields} for shard in shards]
    (folder / "manifest.json").write_text(json.dumps(plain | {"digest": old.digest}))
    return old


def json_index(index: ShardIndex) -> bytes:
    places = [index.members(sample) for sample in range(len(index))]
    plain = {
        "keys": index.keys,
        "suffixes": index.suffixes,
        "offsets": [[place.get(suffix, (0, -1))[0] for suffix in index.suffixes] for place in places],
        "sizes": [[place.get(suffix, (0, -1))[1] for suffix in index.suffixes] for place in places],
    }
    return json.dumps(plain, separators=(",", ":")).encode()
