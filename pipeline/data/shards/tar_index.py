"""The index of a tar: the place of each member of each sample, so that a sample is read by (offset, size).

A sample is what WebDataset calls one: neighbouring files that share their path up to the first dot of the
file name. That path is the key. What follows the dot, in lower case, is the suffix of the member.
"""

import os
import re
import stat
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pipeline.data.shards.index import BLOCK, MAX_MEMBER, MAX_SUFFIXES, ShardIndex
from pipeline.errors import SampleError

MAX_NAME = 1024
MAX_HEADER = 1 << 20
"""Bytes of the largest long name or pax header that is read; it goes into memory before anything can be
checked."""
MAX_CELLS = 1 << 22
"""Most samples times kinds of members of a shard: each takes a place in its index, also where a sample has no
such member."""
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")

Member = tuple[int, int, str]
"""Offset, size, and name of a file in a tar."""


def index_tar(path: Path | str) -> ShardIndex:
    """The index of a local tar, by its headers. Raises SampleError for what cannot be trusted: links, split
    or repeated samples, a cut file."""
    return index_of(path, _regular_files(path))


def index_of_readable(path: Path | str) -> ShardIndex:
    """The index of what can be read of a local tar that may be damaged: its whole files before the damage.
    Raises SampleError where there is no sample."""
    files: list[Member] = []
    end = os.path.getsize(path)
    with suppress(SampleError):
        for member in _regular_files(path):
            if member[0] + member[1] <= end:
                files.append(member)
    return index_of(path, files)


def key_and_suffix(name: str) -> tuple[str, str] | None:
    """Key of the sample that a file of this name belongs to, and suffix of the member; None where it is no
    member."""
    match = _NAME.fullmatch(name)
    return None if match is None else (match[1], match[2].lower())


def index_of(path: Path | str, files: Iterable[Member]) -> ShardIndex:
    """The index of a tar whose files are these, in their order. Raises SampleError, see `index_tar`."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    last = None
    for offset, size, name in files:
        named = key_and_suffix(name)
        # WebDataset, too, passes over a README and the like
        if named is None:
            continue
        key, suffix = named
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
    return _table(path, samples)


def _table(path: Path | str, samples: dict[str, dict[str, tuple[int, int]]]) -> ShardIndex:
    suffixes = sorted({suffix for members in samples.values() for suffix in members})
    if len(suffixes) > MAX_SUFFIXES:
        raise SampleError(
            f"{path}: its samples have {len(suffixes)} kinds of members, for instance .{suffixes[0]} and "
            f".{suffixes[1]}; the limit is {MAX_SUFFIXES}: give every sample the same ones"
        )
    if len(samples) * len(suffixes) > MAX_CELLS:
        raise SampleError(
            f"{path}: {len(samples)} samples with {len(suffixes)} kinds of members would take a table of "
            f"more than {MAX_CELLS} places; give every sample the same members, or make smaller shards"
        )
    column = {suffix: number for number, suffix in enumerate(suffixes)}
    offsets = np.zeros((len(samples), len(suffixes)), dtype=np.int64)
    sizes = np.full_like(offsets, -1)
    for row, members in enumerate(samples.values()):
        for suffix, place in members.items():
            offsets[row, column[suffix]], sizes[row, column[suffix]] = place
    try:
        return ShardIndex.of(samples, suffixes, offsets, sizes)
    except ValueError as err:
        raise SampleError(f"{path}: {err}; write it anew as a plain tar") from err


def _regular_files(path: Path | str) -> Iterator[tuple[int, int, str]]:
    """Yields (offset, size, name) of each file in the tar."""
    position = 0
    try:
        if not (stat.S_ISREG(mode := os.stat(path).st_mode) or stat.S_ISDIR(mode)):
            # a pipe or a device may have no end
            raise SampleError(f"{path}: is no file but a pipe or a device; give a plain tar")
        with open(path, "rb") as file, tarfile.open(fileobj=_Headers(path, file), mode="r:") as tar:  # pyright: ignore
            while (member := tar.next()) is not None:
                # a negative size in a header would send tarfile round in a circle
                if member.offset < position:
                    raise SampleError(
                        f"{path}: header at byte {member.offset} points backwards; the shard is corrupt"
                    )
                position = member.offset + BLOCK
                _check(path, member)
                # tarfile would keep them all
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
                if not member.isdir():
                    yield member.offset_data, member.size, member.name
            file.seek(tar.offset)
            if file.read(BLOCK) != bytes(BLOCK):
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
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
        raise SampleError(
            f"{path}: member {member.name!r:.200} at byte {member.offset} is a link, device or sparse file; "
            "a shard holds regular files only"
        )
    check_member(path, member.name, member.offset, member.size)


def check_member(path: Path | str, name: str, offset: int, size: int) -> None:
    """Raises SampleError for a file that no shard may hold. offset: that of its header."""
    where = f"{path}: member {name!r:.200} at byte {offset}"
    if not 0 <= size <= MAX_MEMBER:
        raise SampleError(f"{where} says it has {size} bytes; the limit is {MAX_MEMBER}")
    if len(name) > MAX_NAME or not name.isprintable():
        raise SampleError(f"{where} has a name that is too long, or not printable UTF-8")
