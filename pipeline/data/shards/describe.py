"""Makes the manifest of tars from their content."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.data.layouts.class_lists import CLASSES, Names, parse_names
from pipeline.data.layouts.splits import split_of
from pipeline.data.members.decode import decode_class
from pipeline.data.shards.index import SUFFIX, ShardIndex
from pipeline.data.shards.locations import is_remote, join, split
from pipeline.data.shards.manifest import Manifest
from pipeline.data.shards.storage import download, read_bytes
from pipeline.data.shards.table import Shard, ShardTable
from pipeline.data.shards.tar_index import index_tar
from pipeline.errors import SampleError
from pipeline.files import sha256_of


@dataclass(frozen=True)
class Described:
    """What a manifest says of a shard, and what its samples hold."""

    shard: Shard
    suffixes: tuple[str, ...]
    num_classes: int
    """Highest class plus 1; 0 where there are no classes."""


def manifest_of(described: Iterable[Described], names: Names) -> Manifest:
    """The manifest of these shards. Classes without names are named by their numbers."""
    found = list(described)
    schema = tuple(sorted({suffix for one in found for suffix in one.suffixes}))
    classes = names.classes or tuple(map(str, range(max(one.num_classes for one in found))))
    return Manifest(ShardTable.of(one.shard for one in found), schema, classes, names.mask_classes)


def describe_tar(tar: str, *, hashed: bool) -> tuple[Described, bytes]:
    """What a tar holds, and its index as it is stored. A remote tar is downloaded for it, and not kept.
    hashed: whether its sha256 is taken, for which all of it is read. Raises SampleError."""
    if is_remote(tar):
        with TemporaryDirectory(prefix="dtem-") as scratch:
            path = Path(scratch, split(tar)[1])
            _download(tar, path)
            described, index = describe_tar(str(path), hashed=hashed)
        return replace(described, shard=replace(described.shard, url=tar)), index
    index = index_tar(tar)
    num_bytes, sha256 = os.path.getsize(tar), sha256_of(tar) if hashed else ""
    return described_by(tar, index, num_bytes, sha256, count_classes(tar, index)), index.to_bytes()


def described_by(tar: str, index: ShardIndex, num_bytes: int, sha256: str, num_classes: int) -> Described:
    """What a manifest says of the tar at this place, by its index."""
    folder, name = split(tar)
    index_sha256 = hashlib.sha256(index.to_bytes()).hexdigest()
    place = tar, join(folder, f"{name}{SUFFIX}")
    shard = Shard(name, len(index), num_bytes, sha256, index_sha256, *place, split_of(name))
    return Described(shard, index.suffixes, num_classes)


def _download(tar: str, path: Path) -> None:
    try:
        download(tar, path)
    except FileNotFoundError as err:
        raise missing(tar) from err


def missing(tar: str) -> SampleError:
    return SampleError(f"{tar} is missing; name the shards that are there")


def count_classes(tar: str, index: ShardIndex) -> int:
    """The highest class plus 1. A label that cannot be read does not count: reading its sample will report
    it."""
    highest = -1
    with open(tar, "rb") as file:
        for sample in range(len(index) if "cls" in index.suffixes else 0):
            offset, size = index.members(sample, ("cls",)).get("cls", (0, 0))
            highest = max(highest, class_in(os.pread(file.fileno(), min(size, MAX_LABEL), offset)))
    return highest + 1


MAX_LABEL = 32
"""Bytes of a label that is looked at."""


def class_in(data: bytes) -> int:
    """The class in a member cls; -1 where there is none that can be read."""
    try:
        return decode_class(data) if 0 < len(data) < MAX_LABEL else -1
    except SampleError:
        return -1


def read_names(folder: str) -> Names:
    """The names in `classes.json` of the folder (see `parse_names`); none where there is no such file. Raises
    SampleError."""
    path = join(folder, CLASSES)
    try:
        return parse_names(path, read_bytes(path))
    except FileNotFoundError:
        return Names()
    except OSError as err:
        raise SampleError(f"{path}: {err}; give a JSON list of class names, or remove the file") from err
