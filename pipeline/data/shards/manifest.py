"""The manifest of a set of shards: counts, bytes, hashes, member suffixes, class names, and the place of
every member.

On disk it is `manifest.json` beside the shards (or elsewhere, where its `root` names their folder), and
`SHARD.index.json` for each shard.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.data.shards.locations import checked, join
from pipeline.data.shards.splits import split_of
from pipeline.data.shards.storage import read_bytes, storage_error
from pipeline.data.shards.tar_index import ShardIndex
from pipeline.errors import SampleError, StorageError
from pipeline.files import replacing

MANIFEST = "manifest.json"
FORMAT = 1
_SPLIT = re.compile(r"[A-Za-z0-9_-]{0,40}")


@dataclass(frozen=True)
class Shard:
    """One tar."""

    name: str
    num_samples: int
    num_bytes: int
    sha256: str
    """Hash of its bytes; empty where it was indexed on the fly."""
    index_sha256: str
    """Hash of its index."""
    url: str = ""
    index_url: str = ""
    split: str = ""
    """`train`, `val`, `test` or another word; empty where neither the manifest nor the name has one."""

    def plain(self) -> dict[str, Any]:
        """Its entry in the manifest."""
        fields = ("name", "split", "num_samples", "num_bytes", "sha256", "index_sha256")
        return {name: getattr(self, name) for name in fields}

    def identity(self) -> list[Any]:
        """The facts that the digest of a set is made of. A split counts only where the name does not have it,
        so that older sets keep their digest."""
        own = [self.split] if self.split != split_of(self.name) else []
        return [self.name, self.num_samples, self.num_bytes, self.index_sha256, *own]


@dataclass(frozen=True)
class Manifest:
    """What a set of shards holds."""

    shards: tuple[Shard, ...]
    schema: tuple[str, ...]
    """Member suffixes of the samples."""
    classes: tuple[str, ...]
    """Names of the classes 0, 1, ...; empty where samples have no class."""
    mask_classes: tuple[str, ...] = ()
    """Names of the labels 0, 1, ... of masks; empty where masks are numbered like `classes`, or there are
    none."""
    indexes: Mapping[str, ShardIndex] = field(default_factory=dict, repr=False, compare=False)
    """Maps the URL of a shard that was indexed on the fly to its index."""

    @property
    def mask_names(self) -> tuple[str, ...]:
        return self.mask_classes or self.classes

    @property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    @property
    def digest(self) -> str:
        """Hash that names the set: it changes with any key, member position, class, split or shard."""
        parts = [shard.identity() for shard in self.shards]
        # sets without mask classes keep the digest that they had before there were any
        mask_classes = [self.mask_classes] if self.mask_classes else []
        return hashlib.sha256(
            json.dumps([parts, self.schema, self.classes, *mask_classes]).encode()
        ).hexdigest()

    def index(self, number: int, patience: float | None = None) -> ShardIndex:
        """The index of shard `number`. Raises StorageError where it cannot be read for `patience` seconds,
        and at once where a local file is not the index that the manifest names."""
        shard = self.shards[number]
        return self.indexes[shard.url] if shard.url in self.indexes else _read_index(shard, patience)

    def to_json(self, root: str | None) -> bytes:
        plain: dict[str, Any] = {
            "format": FORMAT,
            "root": root,
            "schema": self.schema,
            "classes": self.classes,
        }
        plain |= {"mask_classes": self.mask_classes} if self.mask_classes else {}
        return (
            json.dumps(
                plain | {"digest": self.digest, "shards": [shard.plain() for shard in self.shards]}, indent=1
            ).encode()
            + b"\n"
        )


def _read_index(shard: Shard, patience: float | None) -> ShardIndex:
    try:
        data = read_bytes(shard.index_url, patience, shard.index_sha256)
        if hashlib.sha256(data).hexdigest() != shard.index_sha256:
            raise ValueError("it is not the one that the manifest names")
        index = ShardIndex.from_json(data, shard.num_bytes)
        if len(index.keys) != shard.num_samples:
            raise ValueError(f"it has {len(index.keys)} samples and the manifest says {shard.num_samples}")
        return index
    except OSError as err:
        raise storage_error(f"index {shard.index_url}", err) from err
    except (SampleError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as err:
        raise StorageError(
            f"index {shard.index_url}: {err or type(err).__name__}; make it anew: {remedy(shard.url)}"
        ) from err


def parse_manifest(data: bytes, folder: str) -> Manifest:
    """The inverse of `Manifest.to_json`. folder: that of the manifest. Raises ValueError and the errors of
    missing or wrong entries."""
    plain = json.loads(data)
    if plain["format"] != FORMAT:
        raise ValueError(f"its format is {plain['format']!r:.20} and this program reads {FORMAT}")
    root = checked(plain["root"]) if plain["root"] is not None else folder
    shards = tuple(_parse_shard(entry, root, folder) for entry in plain["shards"])
    manifest = Manifest(
        shards, tuple(plain["schema"]), tuple(plain["classes"]), tuple(plain.get("mask_classes", ()))
    )
    if not shards or not all(
        isinstance(text, str) for text in manifest.schema + manifest.classes + manifest.mask_classes
    ):
        raise ValueError("it lists no shard, or names that are not text")
    if plain["digest"] != manifest.digest:
        raise ValueError("its digest does not fit its content")
    return manifest


def _parse_shard(entry: dict[str, Any], root: str, folder: str) -> Shard:
    name, sha256, index_sha256 = (entry[field] for field in ("name", "sha256", "index_sha256"))
    counts = entry["num_samples"], entry["num_bytes"]
    if (
        not isinstance(name, str)
        or not name.isprintable()
        or "/" in name
        or name.startswith((".", "-"))
        or not name.endswith(".tar")
    ):
        raise ValueError(f"shard name {name!r:.100} is not a plain name that ends in .tar")
    if (
        not all(type(count) is int and count > 0 for count in counts)
        or not isinstance(sha256, str)
        or not isinstance(index_sha256, str)
    ):
        raise ValueError(f"the entry of {name} is not made of counts and hashes")
    split = entry.get("split", split_of(name))
    if not isinstance(split, str) or not _SPLIT.fullmatch(split):
        raise ValueError(f"the split {split!r:.100} of {name} is not a plain word")
    return Shard(
        name, *counts, sha256, index_sha256, join(root, name), join(folder, f"{name}.index.json"), split
    )


def write_manifest(folder: Path, manifest: Manifest, root: str | None = None) -> Path:
    """Writes the indexes, and last the manifest, each of which appears whole or not at all. root: the folder
    of the shards, if it is not `folder`."""
    for number, shard in enumerate(manifest.shards):
        _write(folder / f"{shard.name}.index.json", manifest.index(number).to_json())
    _write(folder / MANIFEST, manifest.to_json(root))
    return folder / MANIFEST


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as part:
        part.write_bytes(data)


def remedy(location: str) -> str:
    """The command that makes the manifest of a folder anew, or that of the folder of a tar."""
    folder = location.rpartition("/")[0] if location.endswith(".tar") else location
    return f"`dtem shards make index {folder}`"
