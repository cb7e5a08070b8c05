"""The manifest of a set of shards: counts, bytes, hashes, member suffixes and class names.

On disk it is `manifest.json` beside the shards (or elsewhere, where its `root` names their folder), and
`SHARD.index` for each shard. Format 2 lists the shards by columns; format 1, in which each shard has an entry
of its own and an index in JSON, is read as well.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.data.layouts.splits import split_of
from pipeline.data.shards.index import BLOCK, OLD_SUFFIX, SUFFIX
from pipeline.data.shards.label_noise import LabelNoise
from pipeline.data.shards.locations import checked
from pipeline.data.shards.table import MAX_NAME, Place, ShardTable, hex_of, table
from pipeline.files import write_bytes

MANIFEST = "manifest.json"
UNFINISHED = ".making"
"""File in a folder whose shards are being made, or were not finished: hash of what is to be made."""
FORMAT = 2
COLUMNS = ("name", "split", "num_samples", "num_bytes", "sha256", "index_sha256")
_SPLIT = re.compile(r"[A-Za-z0-9_-]{0,40}")
_MAX_COUNT = 1 << 41


@dataclass(frozen=True, eq=False)
class Manifest:
    """What a set of shards holds."""

    shards: ShardTable
    schema: tuple[str, ...]
    """Member suffixes of the samples."""
    classes: tuple[str, ...]
    """Names of the classes 0, 1, ...; empty where samples have no class."""
    mask_classes: tuple[str, ...] = ()
    """Names of the labels 0, 1, ... of masks; empty where masks are numbered like `classes`, or there are
    none."""

    weights: tuple[tuple[int, float], ...] = ()
    """Of several sets that training mixes: the number of shards of each, and how often a sample of it comes
    in an epoch. Empty where that is once for all."""
    label_noise: tuple[LabelNoise, ...] = ()
    """Noise that was put into the labels on purpose; of joined sets that of all."""

    @property
    def mask_names(self) -> tuple[str, ...]:
        return self.mask_classes or self.classes

    @property
    def num_samples(self) -> int:
        return self.shards.total

    @cached_property
    def digest(self) -> str:
        """Hash that names the set: it changes with any key, member position, class, split or shard."""
        found = hashlib.sha256(b"[")
        for part in self.shards.identities():
            found.update(part)
        # sets without mask classes keep the digest that they had before there were any
        rest = [self.schema, self.classes, *([self.mask_classes] if self.mask_classes else [])]
        rest += [{"weights": self.weights}] if self.weights else []
        rest += [{"label_noise": self._noise()}] if self.label_noise else []
        found.update(b", " + json.dumps(rest)[1:].encode())
        return found.hexdigest()

    @property
    def fingerprint(self) -> int:
        """48 bits of the digest."""
        return int(self.digest[:12], 16)

    def to_json(self, root: str | None) -> bytes:
        """The manifest as it is stored. root: folder of the shards; None: that of the manifest."""
        plain: dict[str, Any] = {
            "format": FORMAT,
            "root": root,
            "schema": self.schema,
            "classes": self.classes,
        }
        plain |= {"mask_classes": self.mask_classes} if self.mask_classes else {}
        plain |= {"label_noise": self._noise()} if self.label_noise else {}
        head = json.dumps(plain | {"digest": self.digest}, indent=1).removesuffix("\n}")
        columns = ",\n".join(f'  "{name}": {json.dumps(values)}' for name, values in self._columns())
        return f'{head},\n "shards": {{\n{columns}\n }}\n}}\n'.encode()

    def _noise(self) -> list[dict[str, Any]]:
        return [note.to_plain() for note in self.label_noise]

    def _columns(self) -> Iterator[tuple[str, list[Any]]]:
        shards = self.shards
        yield "name", [name.decode() for name in shards.names.tolist()]
        yield "split", shards.splits.tolist()
        yield "num_samples", shards.num_samples.tolist()
        yield "num_bytes", shards.num_bytes.tolist()
        yield "sha256", hex_of(shards.sha256)
        yield "index_sha256", hex_of(shards.index_sha256)


def parse_manifest(data: bytes, folder: str, *, indexed: bool = True) -> Manifest:
    """The inverse of `Manifest.to_json`, also for format 1. folder: that of the manifest. indexed: whether
    the indexes of the shards lie there. Raises ValueError for anything else."""
    try:
        return _parsed(data, folder, indexed)
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as err:
        raise ValueError(str(err) or type(err).__name__) from err


def _parsed(data: bytes, folder: str, indexed: bool) -> Manifest:
    """The same. Raises ValueError, and the errors of missing or wrong entries, too."""
    plain = json.loads(data)
    del data
    if plain["format"] not in (1, FORMAT):
        raise ValueError(f"its format is {plain['format']!r:.20} and this program reads 1 and {FORMAT}")
    root = checked(plain["root"]) if plain["root"] is not None else folder
    old = plain["format"] == 1
    columns = _columns_of(plain.pop("shards"), old)
    place = Place(root, folder, OLD_SUFFIX if old else SUFFIX) if indexed else Place(root, "", "")
    shards = table((place,), [0] * len(columns["name"]), *_in_order(columns))
    manifest = Manifest(
        shards,
        tuple(plain["schema"]),
        tuple(plain["classes"]),
        tuple(plain.get("mask_classes", ())),
        label_noise=tuple(map(LabelNoise.from_plain, plain.get("label_noise", ()))),
    )
    if not len(shards) or not all(
        isinstance(text, str) for text in manifest.schema + manifest.classes + manifest.mask_classes
    ):
        raise ValueError("it lists no shard, or names that are not text")
    if plain["digest"] != manifest.digest:
        raise ValueError("its digest does not fit its content")
    return manifest


def _in_order(columns: Mapping[str, list[Any]]) -> list[list[Any]]:
    """The columns in the order of the arguments of `table`."""
    order = ("name", "num_samples", "num_bytes", "sha256", "index_sha256", "split")
    return [columns[name] for name in order]


def _columns_of(shards: Any, old: bool) -> dict[str, list[Any]]:
    """The checked columns of the shards of a manifest. Raises the errors of missing or wrong entries."""
    if old:
        columns = {name: [entry[name] for entry in shards] for name in COLUMNS if name != "split"}
        columns["split"] = [entry.get("split", split_of(str(entry["name"]))) for entry in shards]
    else:
        columns = {name: shards[name] for name in COLUMNS}
    lengths = {len(column) for column in columns.values() if isinstance(column, list)}
    if len(lengths) != 1 or not all(isinstance(column, list) for column in columns.values()):
        raise ValueError("its columns are not lists of one length")
    _check_names(columns["name"])
    if len(set(columns["name"])) != len(columns["name"]):
        raise ValueError("two of its shards have one name")
    for word in ("num_samples", "num_bytes"):
        counts = columns[word]
        if set(map(type, counts)) - {int} or not all(0 < count < _MAX_COUNT for count in counts):
            raise ValueError(f"an entry of {word} is not a count above 0")
    pairs = zip(columns["num_samples"], columns["num_bytes"], strict=True)
    if any(samples * BLOCK > size for samples, size in pairs):
        raise ValueError("a shard has fewer bytes than its samples take")
    for word in ("sha256", "index_sha256"):
        if set(map(type, columns[word])) - {str}:
            raise ValueError(f"an entry of {word} is not a hash")
    for word in set(columns["split"]):
        if not isinstance(word, str) or not _SPLIT.fullmatch(word):
            raise ValueError(f"the split {word!r:.100} of a shard is not a plain word")
    return columns


def _check_names(names: list[Any]) -> None:
    """Raises ValueError for a name that is no plain one, which could lead out of the folder."""
    # all at once, and one by one only where something is wrong
    if not set(map(type, names)) - {str}:
        text = "".join(names)
        plain = text.isprintable() and "/" not in text and max(map(len, names), default=0) <= MAX_NAME // 4
        if plain and all(name.endswith(".tar") and name[0] not in ".-" for name in names):
            return
    for name in names:
        if not _is_plain(name):
            raise ValueError(f"shard name {name!r:.100} is not a plain name that ends in .tar")


def _is_plain(name: Any) -> bool:
    return (
        isinstance(name, str)
        and name.isprintable()
        and "/" not in name
        and not name.startswith((".", "-"))
        and name.endswith(".tar")
        and len(name.encode()) <= MAX_NAME
    )


def write_manifest(folder: Path, manifest: Manifest, root: str | None = None) -> Path:
    """Writes the manifest, which appears whole or not at all, and returns its path. root: the folder of the
    shards, if it is not `folder`. Their indexes lie in `folder` already."""
    write_bytes(folder / MANIFEST, manifest.to_json(root))
    return folder / MANIFEST


def remedy(location: str) -> str:
    """The command that makes the manifest of a folder anew, or that of the folder of a tar."""
    folder = location.rpartition("/")[0] if location.endswith(".tar") else location
    return f"`dtem shards make index {folder}`"
