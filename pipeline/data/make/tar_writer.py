"""Writes a tar of samples, and takes its index and its sha256 meanwhile."""

import hashlib
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from pipeline.data.shards.describe import Described, class_in, described_by
from pipeline.data.shards.tar_index import Member, check_member, index_of, key_and_suffix
from pipeline.errors import SampleError


class TarWriter:
    """Writes samples one after the other into an open file. path: what the tar will be called."""

    def __init__(self, path: Path, file: BinaryIO):
        self._path, self._file = path, file
        self._hash = hashlib.sha256()
        self._size = 0
        self._files: list[Member] = []
        self._highest = -1

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Appends a sample. members: suffix -> bytes. Raises SampleError for a key or member that no reader
        would find again."""
        for suffix, data in members.items():
            name = f"{key}.{suffix}"
            if key_and_suffix(name) != (key, suffix):
                raise SampleError(
                    f"{self._path}: {name!r:.200} is not the name of a member KEY.SUFFIX; rename it"
                )
            check_member(self._path, name, self._size, len(data))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            self._write(info.tobuf(tarfile.GNU_FORMAT))
            self._files.append((self._size, len(data), name))
            self._write(data)
            self._write(bytes(-len(data) % tarfile.BLOCKSIZE))
            if suffix == "cls":
                self._highest = max(self._highest, class_in(data))

    def finish(self) -> tuple[Described, bytes]:
        """Writes the end mark. Gives what the tar holds, and its index as it is stored."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self._size % tarfile.RECORDSIZE))
        index = index_of(self._path, self._files)
        sha256 = self._hash.hexdigest()
        return described_by(str(self._path), index, self._size, sha256, self._highest + 1), index.to_bytes()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data)
