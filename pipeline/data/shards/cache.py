"""The cache of downloaded shards and of small files about them: a folder that all runs, ranks and workers of
a machine share."""

import errno
import hashlib
import math
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from pipeline.data.shards.index import Buffer, map_file
from pipeline.data.shards.locks import leased, locked, opened
from pipeline.data.shards.patience import storage_error
from pipeline.data.shards.room import Room
from pipeline.data.shards.storage import DiskFullError, download
from pipeline.data.shards.table import Shard
from pipeline.errors import ConfigError, PipelineError, StorageError
from pipeline.files import NO_SPACE

VARIABLE = "DTEM_CACHE"
GIB = 32.0
"""Default of `data.cache_gib`."""
TRIES = 3
"""Attempts at a shard that the disk has no room for, while files can be deleted."""
T = TypeVar("T")


@dataclass(frozen=True)
class ShardCache:
    """max_bytes: limit of the whole folder. Above it, the files that were not used for longest are deleted.
    Shards that somebody has a lease of stay, even if they alone are more (room.py).

    A lease is an open descriptor of a shard, which `locks.release` closes. A file appears under its name
    whole and leased. patience: seconds for which storage that fails is asked again, and a file is waited for
    that another process fetches.
    """

    folder: Path
    max_bytes: int

    @cached_property
    def _room(self) -> Room:
        return Room(self.folder, self.max_bytes)

    def open(self, shard: Shard, patience: float) -> int:
        """A lease of the shard, which is downloaded first where it is not there. One process downloads; the
        others wait for it. Raises StorageError."""
        path = self._path(shard)
        with self._told(shard.url, patience):
            if (file := leased(path, shard.num_bytes)) is not None:
                return file
            with self._locked(path.name, patience):
                if (file := leased(path, shard.num_bytes)) is not None:
                    return file
                self._room.make(path.name, shard.num_bytes, must=True)
                for attempt in range(TRIES):
                    try:
                        return self._fetched(shard, path, patience)
                    except DiskFullError:
                        fits = self._room.make(path.name, shard.num_bytes, must=True)
                        if attempt == TRIES - 1 or not fits.disk:
                            raise
        raise AssertionError("every way out of the loop is taken")

    def lease(self, shard: Shard) -> int | None:
        """A lease of the shard; None where it is not there."""
        with suppress(OSError):
            return leased(self._path(shard), shard.num_bytes)
        return None

    def prefetch(self, shard: Shard) -> int | None:
        """A lease of the shard, which is downloaded where it is not there. None where that fails, somebody
        else is at it, or nothing that is not in use could make room for it."""
        path = self._path(shard)
        with suppress(OSError, PipelineError), self._locked(path.name, 0.0):
            if (file := leased(path, shard.num_bytes)) is not None:
                return file
            if all(self._room.make(path.name, shard.num_bytes, must=False)):
                return self._fetched(shard, path, 0.0)
        return None

    def kept(
        self, name: str, make: Callable[[], bytes], parse: Callable[[Buffer], T], patience: float = math.inf
    ) -> T:
        """What `parse` makes of the small file `name`, which is mapped into memory. Where it is not there, or
        `parse` raises ValueError, one process makes the file and the others wait.

        Raises the errors of `make`, the ValueError for what it made, and StorageError.
        """
        path = self.folder / name
        with self._told(name, patience):
            if (found := _parsed(path, parse)) is not None:
                return found
            with self._locked(name, patience):
                if (found := _parsed(path, parse)) is not None:
                    return found
                try:
                    data = make()
                except OSError as err:
                    raise storage_error(name, err) from err
                try:
                    data = self._stored(path, data)
                except OSError as err:
                    if err.errno not in NO_SPACE:
                        raise
                return parse(data)

    def _stored(self, path: Path, data: bytes) -> Buffer:
        """The data, mapped from its new file."""
        # where there is none it is stored all the same, and counted when the folder is looked at
        self._room.make(path.name, len(data), must=False)
        part = self._room.part_of(path.name)
        # made here, so no link is followed
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mapped before others see it, and may delete it
        with open(part, "rb") as file:
            mapped = map_file(file.fileno())
        os.replace(part, path)
        return mapped

    def _path(self, shard: Shard) -> Path:
        told = shard.sha256 or hashlib.sha256(f"{shard.url} {shard.index_sha256}".encode()).hexdigest()
        return self.folder / f"{told[:32]}.tar"

    def _fetched(self, shard: Shard, path: Path, patience: float) -> int:
        """A lease of the shard, after it was downloaded."""
        part = self._room.part_of(path.name)
        try:
            download(shard.url, part, shard.num_bytes, shard.sha256, patience)
        except FileNotFoundError as err:
            raise storage_error(shard.url, err) from err
        file = leased(part, shard.num_bytes)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, "a file was removed while it was fetched")
        os.replace(part, path)
        return file

    @contextmanager
    def _locked(self, name: str, patience: float) -> Iterator[None]:
        """While it is open, nobody else fetches the file `name`."""
        self._room.prepare()
        with locked(self._room.lock_of(name), patience):
            self._room.remove_parts(name)
            try:
                yield
            finally:
                self._room.remove_parts(name)

    @contextmanager
    def _told(self, what: str, patience: float) -> Iterator[None]:
        """Turns what goes wrong with the folder into a StorageError that says so. That of a download is one
        already."""
        try:
            yield
        except BlockingIOError as err:
            raise StorageError(
                f"{what}: another process of this machine has been at it for {patience:.0f} s; see that the "
                "storage answers, then resume"
            ) from err
        except OSError as err:
            many = err.errno in (errno.EMFILE, errno.ENFILE)
            way = (
                "raise `ulimit -n`, or give fewer data.lanes" if many else "give data.cache_dir a local disk"
            )
            why = err.strerror or str(err)
            raise StorageError(f"the cache {self.folder} of shards cannot be used: {why}; {way}") from err


def cache_folder(given: str | None = None) -> Path:
    """The folder of the cache: the given one, else that of $DTEM_CACHE, else one of this user in the folder
    for temporary files ($TMPDIR, /tmp), which is a local disk where a home is often not.

    Raises ConfigError where another user could have written into the last.
    """
    if named := given or os.environ.get(VARIABLE):
        return Path(named).expanduser()
    folder = Path(tempfile.gettempdir(), f"dtem-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise ConfigError(
            f"{folder} is not a folder that you alone can write to; give the cache another one by "
            f"data.cache_dir or ${VARIABLE}"
        )
    return folder


def default_cache() -> ShardCache:
    """The cache where no config says otherwise."""
    return ShardCache(cache_folder(), int(GIB * 2**30))


def _parsed(path: Path, parse: Callable[[Buffer], T]) -> T | None:
    """What `parse` makes of the file; None where it is not there, or is damaged."""
    if (file := opened(path)) is None:
        return None
    try:
        return parse(map_file(file))
    except ValueError:
        return None
    finally:
        os.close(file)
