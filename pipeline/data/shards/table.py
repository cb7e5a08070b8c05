"""The shards of a set as columns: 100,000 of them take ten megabytes, not an object for each."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from pipeline.data.layouts.splits import split_of
from pipeline.data.shards.locations import join, split

MAX_NAME = 255
"""Bytes of the longest name of a shard."""
_ROWS = 4096
"""Shards that are turned into text at once."""
_DIGITS = str.maketrans("123456789", "000000000")


@dataclass(frozen=True)
class Shard:
    """One tar."""

    name: str
    num_samples: int
    num_bytes: int
    sha256: str
    """Hash of its bytes; empty where it is not known."""
    index_sha256: str
    """Hash of its index."""
    url: str = ""
    index_url: str = ""
    """The place of its index; empty where it has none, and readers make one from the tar."""
    split: str = ""
    """`train`, `val`, `test` or another word; empty where neither the manifest nor the name has one."""


class LooseSamples(Protocol):
    """The samples of shards that nobody has written: their files lie apart (loose.py)."""

    kind: str
    """How they lie, see `LAYOUTS`."""

    def key(self, shard: str, sample: int) -> str:
        """The key of a sample of the shard of this name."""
        ...

    def members(self, shard: str, sample: int) -> Mapping[str, bytes]:
        """Its members, by their suffixes. Raises SampleError for files of which no sample can be made, and
        OSError."""
        ...


@dataclass(frozen=True)
class Place:
    """Where shards lie: their folder, and the folder and ending of their indexes."""

    root: str
    indexes: str
    """Empty where there are none."""
    suffix: str
    loose: LooseSamples | None = None
    """What reads the samples in place of tars."""

    def url(self, name: str) -> str:
        return join(self.root, name)

    def index_url(self, name: str) -> str:
        return join(self.indexes, name + self.suffix) if self.indexes else ""


@dataclass(frozen=True, eq=False)
class ShardTable(Sequence[Shard]):
    """N shards. A `Shard` is made when one is asked for."""

    names: NDArray[np.bytes_]
    """[N], UTF-8."""
    num_samples: NDArray[np.int64]
    """[N]"""
    num_bytes: NDArray[np.int64]
    """[N]"""
    sha256: NDArray[np.uint8]
    """[N, 32]; zeros where a hash is not known."""
    index_sha256: NDArray[np.uint8]
    """[N, 32]"""
    splits: NDArray[np.str_]
    """[N]"""
    places: tuple[Place, ...]
    place: NDArray[np.int32]
    """[N]: number of its place."""

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, number: int) -> Shard: ...
    @overload
    def __getitem__(self, number: slice) -> "ShardTable": ...
    def __getitem__(self, number: int | slice) -> "Shard | ShardTable":
        if isinstance(number, slice):
            return self.take(np.arange(len(self))[number])
        place, name = self.places[int(self.place[number])], self.name(number)
        return Shard(
            name,
            int(self.num_samples[number]),
            int(self.num_bytes[number]),
            hex_of(self.sha256[number : number + 1])[0],
            hex_of(self.index_sha256[number : number + 1])[0],
            place.url(name),
            place.index_url(name),
            str(self.splits[number]),
        )

    def __iter__(self) -> Iterator[Shard]:
        return map(self.__getitem__, range(len(self)))

    def name(self, number: int) -> str:
        return self.names[number].decode()

    def url(self, number: int) -> str:
        return self.places[int(self.place[number])].url(self.name(number))

    def loose(self, number: int) -> LooseSamples | None:
        """What reads the samples of a shard that is not written; None for a tar."""
        return self.places[int(self.place[number])].loose

    @cached_property
    def total(self) -> int:
        """The number of samples of all shards."""
        return int(self.num_samples.sum())

    def take(self, numbers: NDArray[Any] | Sequence[int]) -> "ShardTable":
        """The shards of these numbers, in this order."""
        columns = ("names", "num_samples", "num_bytes", "sha256", "index_sha256", "splits", "place")
        at = np.asarray(numbers, dtype=np.int64)
        return ShardTable(places=self.places, **{name: getattr(self, name)[at] for name in columns})

    def identities(self) -> Iterator[bytes]:
        """The facts that the digest of a set is made of, as the text of a JSON list, in pieces. A split
        counts only where the name does not have it, so that older sets keep their digest."""
        yield b"["
        for start in range(0, len(self), _ROWS):
            part = slice(start, start + _ROWS)
            names = [name.decode() for name in self.names[part].tolist()]
            counts = (self.num_samples[part].tolist(), self.num_bytes[part].tolist())
            rows = list(zip(names, *counts, hex_of(self.index_sha256[part]), strict=True))
            words = self.splits[part].tolist()
            if words != (named := _splits_of(names)):
                told = zip(rows, words, named, strict=True)
                rows = [row if word == own else (*row, word) for row, word, own in told]
            yield (b", " if start else b"") + json.dumps(rows)[1:-1].encode()
        yield b"]"

    @classmethod
    def of(cls, shards: Iterable[Shard]) -> "ShardTable":
        found = list(shards)
        places = [_place(shard) for shard in found]
        numbers = {place: number for number, place in enumerate(dict.fromkeys(places))}
        return table(
            tuple(numbers),
            [numbers[place] for place in places],
            [shard.name for shard in found],
            [shard.num_samples for shard in found],
            [shard.num_bytes for shard in found],
            [shard.sha256 for shard in found],
            [shard.index_sha256 for shard in found],
            [shard.split for shard in found],
        )


def table(
    places: tuple[Place, ...],
    place: Sequence[int],
    names: Sequence[str],
    num_samples: Sequence[int],
    num_bytes: Sequence[int],
    sha256: Sequence[str],
    index_sha256: Sequence[str],
    splits: Sequence[str],
) -> ShardTable:
    """A table of columns of one length. sha256, index_sha256: 64 hex digits each, or empty. Raises ValueError
    and OverflowError for others."""
    return ShardTable(
        np.array([name.encode() for name in names], dtype=np.bytes_),
        np.array(num_samples, dtype=np.int64),
        np.array(num_bytes, dtype=np.int64),
        _hashes(sha256),
        _hashes(index_sha256),
        np.array(splits, dtype=np.str_),
        places,
        np.array(place, dtype=np.int32),
    )


def _splits_of(names: Sequence[str]) -> list[str]:
    """`split_of` each name, which is printable. Names differ in digits, on which their split does not
    depend."""
    patterns = "\n".join(names).translate(_DIGITS).split("\n")
    known = {pattern: split_of(pattern) for pattern in set(patterns)}
    return [known[pattern] for pattern in patterns]


def concatenated(tables: Sequence[ShardTable]) -> ShardTable:
    """The shards of all tables, one table after the other."""
    if len(tables) == 1:
        return tables[0]
    starts = np.cumsum([0, *(len(part.places) for part in tables)])
    place = [part.place + start for part, start in zip(tables, starts[:-1].tolist(), strict=True)]
    columns = ("names", "num_samples", "num_bytes", "sha256", "index_sha256", "splits")
    return ShardTable(
        places=tuple(place for part in tables for place in part.places),
        place=np.concatenate(place).astype(np.int32),
        **{name: np.concatenate([getattr(part, name) for part in tables]) for name in columns},
    )


def _place(shard: Shard) -> Place:
    root, _ = split(shard.url)
    if not shard.index_url:
        return Place(root, "", "")
    folder, name = split(shard.index_url)
    return Place(root, folder, name.removeprefix(shard.name))


def _hashes(texts: Sequence[str]) -> NDArray[np.uint8]:
    """[N, 32]"""
    if set(map(len, texts)) - {0, 64}:
        raise ValueError("a sha256 does not have 64 digits")
    joined = "".join(text or "0" * 64 for text in texts)
    return np.frombuffer(bytes.fromhex(joined), dtype=np.uint8).reshape(len(texts), 32)


def hex_of(hashes: NDArray[np.uint8]) -> list[str]:
    """[N, 32] -> the hashes as 64 hex digits each; empty where one is not known."""
    digits, known = hashes.tobytes().hex(), (hashes != 0).any(axis=1)
    return [digits[64 * place : 64 * place + 64] if known[place] else "" for place in range(len(hashes))]
