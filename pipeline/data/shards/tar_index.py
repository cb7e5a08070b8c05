"""The index of a tar: the place of each member of each sample, so that a sample is read by (offset, size).

A sample is what WebDataset calls one: neighbouring files that share their path up to the first dot of the
file name. That path is the key. What follows the dot, in lower case, is the suffix of the member.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SampleError

MAX_MEMBER = 1 << 28
"""Bytes of the largest member that is accepted."""
MAX_NAME = 1024
MAX_HEADER = 1 << 20
"""Bytes of the largest long name or pax header that is read; it goes into memory before anything can be
checked."""
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
_BLOCK = 512


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The S samples of one shard, and the M suffixes of their members."""

    keys: tuple[str, ...]
    suffixes: tuple[str, ...]
    offsets: NDArray[np.int64]
    """[S, M] bytes."""
    sizes: NDArray[np.int64]
    """[S, M] bytes; -1 where the sample has no such member."""

    def members(self, sample: int) -> dict[str, tuple[int, int]]:
        """Maps a suffix to (offset, size), for the members that the sample has."""
        found = zip(self.suffixes, self.offsets[sample].tolist(), self.sizes[sample].tolist(), strict=True)
        return {suffix: (offset, size) for suffix, offset, size in found if size >= 0}

    def to_json(self) -> bytes:
        """The index as JSON, always in one form, so that its hash names the content."""
        plain = {
            "keys": self.keys,
            "suffixes": self.suffixes,
            "offsets": self.offsets.tolist(),
            "sizes": self.sizes.tolist(),
        }
        return json.dumps(plain, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes, num_bytes: int) -> "ShardIndex":
        """The inverse of `to_json`. Raises ValueError for what cannot be the index of a shard of
        `num_bytes`."""
        plain = json.loads(data)
        keys, suffixes = tuple(plain["keys"]), tuple(plain["suffixes"])
        shape = (len(keys), len(suffixes))
        offsets, sizes = (
            np.array(plain[name], dtype=np.int64).reshape(shape) for name in ("offsets", "sizes")
        )
        if not all(isinstance(text, str) for text in keys + suffixes):
            raise ValueError("keys and suffixes are not all text")
        if (
            (sizes < -1).any()
            or (sizes > MAX_MEMBER).any()
            or (offsets < 0).any()
            or (offsets > num_bytes - np.maximum(sizes, 0)).any()
        ):
            raise ValueError("a member lies outside of the shard")
        return cls(keys, suffixes, offsets, sizes)


def index_tar(path: Path | str) -> ShardIndex:
    """The index of a local tar, by its headers. Raises SampleError for what cannot be trusted: links, split
    or repeated samples, a cut file."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    last = None
    for offset, size, name in _regular_files(path):
        match = _NAME.fullmatch(name)
        # WebDataset, too, passes over a README and the like
        if match is None:
            continue
        key, suffix = match[1], match[2].lower()
        if key != last and key in samples:
            raise SampleError(
                f"{path}: members of sample '{key}' are not side by side (again at byte {offset}); "
                "write it in key order"
            )
        if suffix in samples.setdefault(key, {}):
            raise SampleError(f"{path}: sample '{key}' has two members .{suffix} (again at byte {offset})")
        samples[key][suffix] = (offset, size)
        last = key
    if not samples:
        raise SampleError(
            f"{path}: holds no sample (files named KEY.SUFFIX, for instance 000123.jpg and 000123.cls)"
        )
    return _table(samples)


def _table(samples: dict[str, dict[str, tuple[int, int]]]) -> ShardIndex:
    suffixes = sorted({suffix for members in samples.values() for suffix in members})
    table = np.array(
        [[members.get(suffix, (0, -1)) for suffix in suffixes] for members in samples.values()],
        dtype=np.int64,
    )
    return ShardIndex(tuple(samples), tuple(suffixes), table[..., 0], table[..., 1])


def _regular_files(path: Path | str) -> Iterator[tuple[int, int, str]]:
    """Yields (offset, size, name) of each file in the tar."""
    position = 0
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=_Headers(path, file), mode="r:") as tar:  # pyright: ignore
            while (member := tar.next()) is not None:
                # a negative size in a header would send tarfile round in a circle
                if member.offset < position:
                    raise SampleError(
                        f"{path}: header at byte {member.offset} points backwards; the shard is corrupt"
                    )
                position = member.offset + _BLOCK
                _check(path, member)
                # tarfile would keep them all
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
                if not member.isdir():
                    yield member.offset_data, member.size, member.name
            file.seek(tar.offset)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise SampleError(
                    f"{path}: no end mark at byte {tar.offset}; the shard is cut off or corrupt there: "
                    "copy it again"
                )
            while rest := file.read(MAX_HEADER):
                if rest.strip(b"\0"):
                    raise SampleError(
                        f"{path}: something follows its end mark at byte {tar.offset}, and would not be "
                        "read (a tar behind a tar?); "
                        "unpack it, for instance by `tar --ignore-zeros`, and pack it as one"
                    )
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as err:
        raise SampleError(
            f"{path}: not a readable plain tar after byte {position} ({err}); copy it again, or unpack it"
        ) from err
    except OSError as err:
        raise SampleError(f"{path}: {err.strerror or err}") from err


class _Headers:
    """The file as tarfile reads it, which never needs much at once: members are passed over by seeking."""

    def __init__(self, path: Path | str, file: BinaryIO):
        self._path, self._file = path, file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise SampleError(
                f"{self._path}: a header before byte {self.tell()} says it has {size} bytes; the limit "
                f"is {MAX_HEADER}"
            )
        return self._file.read(size)


def _check(path: Path | str, member: tarfile.TarInfo) -> None:
    where = f"{path}: member {member.name!r:.200} at byte {member.offset}"
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
        raise SampleError(f"{where} is a link, device or sparse file; a shard holds regular files only")
    if not 0 <= member.size <= MAX_MEMBER:
        raise SampleError(f"{where} says it has {member.size} bytes; the limit is {MAX_MEMBER}")
    if len(member.name) > MAX_NAME or not member.name.isprintable():
        raise SampleError(f"{where} has a name that is too long, or not printable UTF-8")
