"""The bytes of the cache: how many its folder may have, and which files give way to new ones."""

import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from pipeline.data.shards.locks import delete, release, remove_if_left

LOCK, PART = ".lock", ".part"
SMALL = 1 << 20
"""Bytes of a file that gives way last: the index of a shard is needed with it, and frees nothing."""
SPARE = 0.05
"""Share of the files that is freed beyond what is needed, so that the next files need no look at the
folder."""
FULL_FOR = 1.0
"""Seconds for which a folder in which no file can be deleted is not looked at again for what can wait."""


class Fits(NamedTuple):
    """Whether a file fits."""

    limit: bool
    disk: bool


class Room:
    """limit: bytes of the whole folder. Above it, the files that were not used for longest are deleted, but
    for those that somebody has a lease of.

    `.fetching` in the folder has, for each file that is fetched, a lock file, whose size is the room that is
    kept for it, and its parts. `.room` has the bytes of the folder, so that it is looked at only where
    something has to go; what it does not know of is found then.
    """

    def __init__(self, folder: Path, limit: int):
        self._folder, self._limit = folder, limit
        self._fetching = folder / ".fetching"

    def lock_of(self, name: str) -> Path:
        return self._fetching / f"{name}{LOCK}"

    def part_of(self, name: str) -> Path:
        return self._fetching / f"{name}{PART}"

    def prepare(self) -> None:
        """Makes the folders."""
        self._fetching.mkdir(parents=True, exist_ok=True, mode=0o700)

    def make(self, name: str, incoming: int, *, must: bool) -> Fits:
        """Keeps room for the file `name` of `incoming` bytes, whose lock this process holds: deletes others
        until it fits into the limit and onto the disk. must: whether it will come in any case; else nothing
        is deleted for a file that cannot fit."""
        if not must and incoming > self._limit:
            return Fits(False, True)
        with self._books() as books:
            used, full = _read(books)
            used -= self._remove_left()
            fits = self._fits(used, incoming, name)
            look = not all(fits) or used < 0
            if look and (must or time.time() - full > FULL_FOR):
                used = self._free(incoming, name)
                fits = self._fits(used, incoming, name)
                full = 0.0 if all(fits) else time.time()
            if all(fits) or must:
                os.truncate(self.lock_of(name), incoming)
                used += incoming
            _write(books, used, full)
        return fits

    def remove_parts(self, name: str) -> None:
        """Removes what a killed process had fetched of a file, whose lock this process holds."""
        for part in (*self._fetching.glob(f".{name}{PART}.*"), self.part_of(name)):
            part.unlink(missing_ok=True)

    @contextmanager
    def _books(self) -> Iterator[int]:
        """The open file `.room`, which nobody else has meanwhile."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        books = os.open(self._folder / ".room", flags, 0o600)
        try:
            fcntl.flock(books, fcntl.LOCK_EX)
            yield books
        finally:
            release(books)

    def _fits(self, used: int, incoming: int, name: str) -> Fits:
        return Fits(used + incoming <= self._limit, self._disk(name) >= incoming)

    def _disk(self, name: str) -> int:
        """Bytes that are free on the disk, but for those that others than `name` will still write."""
        kept: dict[str, int] = {}
        for path, size in _sizes(self._fetching):
            own = path.name.lstrip(".").partition(PART)[0].removesuffix(LOCK)
            kept[own] = kept.get(own, 0) + (size if path.suffix == LOCK else -size)
        promised = sum(max(0, size) for own, size in kept.items() if own != name)
        return shutil.disk_usage(self._folder).free - promised

    def _free(self, incoming: int, name: str) -> int:
        """Deletes files until `incoming` bytes fit, and some more; none where the disk is too small without
        them all. Returns the bytes of the rest."""
        found, own = sorted(self._files()), self.lock_of(name)
        kept = sum(size for path, size in _sizes(self._fetching) if path.suffix == LOCK and path != own)
        there, free = sum(size for *_, size, _ in found), self._disk(name)
        used = there + kept
        lacks = incoming + max(used - self._limit, -free)
        if lacks <= 0 or free + there < incoming:
            return used
        lacks += int(SPARE * there)
        for *_, size, path in found:
            if lacks <= 0:
                break
            if delete(path):
                used -= size
                lacks -= size
        return used

    def _files(self) -> Iterator[tuple[bool, float, int, Path]]:
        """(whether it is small, time of its last use, bytes, path) of every file."""
        for entry in os.scandir(self._folder):
            if not entry.name.startswith("."):
                with suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(found.st_mode):
                        yield found.st_size < SMALL, found.st_mtime, found.st_size, Path(entry.path)

    def _remove_left(self) -> int:
        """Removes what killed processes have left: lock files that nobody holds, and what was fetched under
        them. Returns the room that they had kept."""
        freed = 0
        for path, size in _sizes(self._fetching):
            if path.suffix == LOCK and remove_if_left(path):
                self.remove_parts(path.name.removesuffix(LOCK))
                freed += size
        return freed


def _sizes(folder: Path) -> Iterator[tuple[Path, int]]:
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):
            yield Path(entry.path), entry.stat(follow_symlinks=False).st_size


def _read(books: int) -> tuple[int, float]:
    """Bytes of the folder, and when it was full; (-1, 0) where they are not known."""
    try:
        used, full = os.pread(books, 100, 0).split()
        return int(used), float(full)
    except ValueError:
        return -1, 0.0


def _write(books: int, used: int, full: float) -> None:
    text = f"{used} {full}\n".encode()
    os.ftruncate(books, 0)
    os.pwrite(books, text, 0)
