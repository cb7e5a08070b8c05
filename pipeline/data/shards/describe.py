"""Makes the manifest of tars from their content."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.data.members.decode import decode_class
from pipeline.data.shards.locations import is_remote, join, split
from pipeline.data.shards.manifest import Manifest, Shard
from pipeline.data.shards.splits import split_of
from pipeline.data.shards.storage import download, read_bytes
from pipeline.data.shards.tar_index import ShardIndex, index_tar
from pipeline.errors import SampleError
from pipeline.files import sha256_of

CLASSES = "classes.json"
Described = tuple[Shard, ShardIndex, int]
Mapper = Callable[[Callable[[str], Described], Sequence[str]], Iterable[Described]]


@dataclass(frozen=True)
class Names:
    """Names of classes."""

    classes: tuple[str, ...] = ()
    mask_classes: tuple[str, ...] = ()
    """Names of the labels of masks, where these are numbered otherwise."""


def describe(
    tars: Sequence[str], *, hashes: bool, names: Names | None = None, mapper: Mapper = map
) -> Manifest:
    """The manifest of tars. hashes: whether it holds the sha256 of each. mapper: a `map` that may use several
    processes.

    names None: those of `classes.json` beside the shards. Classes without names are named by their numbers.
    """
    described = list(mapper(partial(describe_shard, hashed=hashes), tars))
    shards = tuple(shard for shard, _, _ in described)
    schema = tuple(sorted({suffix for _, index, _ in described for suffix in index.suffixes}))
    names = read_names(split(tars[0])[0]) if names is None else names
    classes = names.classes or tuple(str(number) for number in range(max(count for _, _, count in described)))
    return Manifest(
        shards, schema, classes, names.mask_classes, {shard.url: index for shard, index, _ in described}
    )


def describe_shard(tar: str, *, hashed: bool) -> Described:
    """The shard, its index, and its highest class plus 1, or 0 where it has no classes. A remote tar is
    downloaded for it, and not kept."""
    folder, name = split(tar)
    if is_remote(tar):
        with TemporaryDirectory(prefix="dtem-") as scratch:
            path = Path(scratch, name)
            _download(tar, path)
            shard, index, num_classes = describe_shard(str(path), hashed=hashed)
        return replace(shard, url=tar), index, num_classes
    index = index_tar(tar)
    index_sha256 = hashlib.sha256(index.to_json()).hexdigest()
    sha256 = sha256_of(tar) if hashed else ""
    place = tar, join(folder, f"{name}.index.json")
    shard = Shard(name, len(index.keys), os.path.getsize(tar), sha256, index_sha256, *place, split_of(name))
    return shard, index, _count_classes(tar, index)


def _download(tar: str, path: Path) -> None:
    try:
        download(tar, path)
    except FileNotFoundError as err:
        raise SampleError(f"{tar} is missing; name the shards that are there") from err


def _count_classes(tar: str, index: ShardIndex) -> int:
    """The highest class plus 1. A label that cannot be read does not count: reading its sample will report
    it."""
    highest = -1
    with open(tar, "rb") as file:
        for sample in range(len(index.keys)):
            offset, size = index.members(sample).get("cls", (0, 0))
            if 0 < size < 32:
                file.seek(offset)
                try:
                    highest = max(highest, decode_class(file.read(size)))
                except SampleError:
                    continue
    return highest + 1


def read_names(folder: str) -> Names:
    """The names in `classes.json` of the folder, which holds a list of class names, or {"classes": [...],
    "mask_classes": [...]}; none where there is no such file. Raises SampleError for any other content."""
    path = join(folder, CLASSES)
    try:
        plain = json.loads(read_bytes(path))
    except FileNotFoundError:
        return Names()
    except (OSError, ValueError, RecursionError) as err:
        raise SampleError(f"{path}: {err}; give a JSON list of class names, or remove the file") from err
    lists = {"classes": plain} if isinstance(plain, list) else plain
    known = isinstance(lists, dict) and 0 < len(lists) == len(lists.keys() & {"classes", "mask_classes"})
    if not known or not all(map(_distinct, lists.values())):
        raise SampleError(
            f"{path}: give a JSON list of different class names, "
            'or {"classes": [...], "mask_classes": [...]} of lists'
        )
    return Names(**{kind: tuple(names) for kind, names in lists.items()})


def _distinct(names: object) -> bool:
    return (
        isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and len(set(names)) == len(names)
    )
