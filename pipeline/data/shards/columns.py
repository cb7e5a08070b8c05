"""A manifest as it lies in the cache of a machine: columns that all of its ranks map into memory, where each
would take seconds and many times the memory to read the JSON.

The file is the sha256 of the rest, a line of JSON with the facts of the set and the types of the columns, and
the columns, each from a multiple of 64 bytes on.
"""

import hashlib
import json
from typing import Any

import numpy as np

from pipeline.data.shards.index import Buffer
from pipeline.data.shards.label_noise import LabelNoise
from pipeline.data.shards.manifest import Manifest
from pipeline.data.shards.table import Place, ShardTable

_COLUMNS = ("names", "num_samples", "num_bytes", "sha256", "index_sha256", "splits", "place")
_HASH, _ALIGN = 64, 64


def to_columns(manifest: Manifest) -> bytes:
    """The inverse of `from_columns`."""
    arrays = [getattr(manifest.shards, name) for name in _COLUMNS]
    facts = {
        "schema": manifest.schema,
        "classes": manifest.classes,
        "mask_classes": manifest.mask_classes,
        "label_noise": [note.to_plain() for note in manifest.label_noise],
        "digest": manifest.digest,
        "places": [[place.root, place.indexes, place.suffix] for place in manifest.shards.places],
        "types": [[array.dtype.str, array.shape] for array in arrays],
    }
    parts = [json.dumps(facts).encode() + b"\n"]
    parts[0] += bytes(-(_HASH + len(parts[0])) % _ALIGN)
    for array in arrays:
        data = array.tobytes()
        parts.append(data + bytes(-len(data) % _ALIGN))
    body = b"".join(parts)
    return hashlib.sha256(body).hexdigest().encode() + body


def from_columns(data: Buffer) -> Manifest:
    """The manifest, whose columns are views of `data`. Raises ValueError for a file that is damaged."""
    with memoryview(data) as view, view[_HASH:] as body:
        if hashlib.sha256(body).hexdigest().encode() != view[:_HASH]:
            raise ValueError("it is damaged")
    end = data.find(b"\n", _HASH) + 1
    facts: dict[str, Any] = json.loads(data[_HASH:end])
    columns, start = {}, end + -end % _ALIGN
    for name, (kind, shape) in zip(_COLUMNS, facts["types"], strict=True):
        dtype = np.dtype(kind)
        count = int(np.prod(shape))
        columns[name] = np.frombuffer(data, dtype, count, start).reshape(shape)
        start += count * dtype.itemsize
        start += -start % _ALIGN
    shards = ShardTable(places=tuple(Place(*place) for place in facts["places"]), **columns)
    names = (tuple(facts[name]) for name in ("schema", "classes", "mask_classes"))
    # files of earlier versions have none
    noise = tuple(map(LabelNoise.from_plain, facts.get("label_noise", ())))
    manifest = Manifest(shards, *names, label_noise=noise)
    # it was compared when the manifest was read
    manifest.__dict__["digest"] = facts["digest"]
    return manifest
