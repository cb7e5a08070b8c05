"""The cache of downloaded shards and of small files about them: a folder that all runs, ranks and workers of
a machine share."""

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.data.shards.index import Buffer, map_file
from pipeline.data.shards.storage import download, storage_error
from pipeline.data.shards.table import Shard
from pipeline.errors import ConfigError

VARIABLE = "DTEM_CACHE"
GIB = 32.0
"""Default of `data.cache_gib`."""
_LOCK, _PART = ".lock", ".part"


class ShardCache:
    """max_bytes: limit of the whole folder. Above it, the files that were not opened for longest are deleted.
    Shards that a reader has open stay, even if they alone are more. patience: seconds for which a server that
    fails is asked again.

    An open shard has a shared lock on itself, its lease, which it has before it appears under its name. While
    a file is fetched there is a lock file beside it, whose size is the room that is kept for it. What a
    killed process has left is removed with the lock file that nobody holds.
    """

    def __init__(self, folder: Path, max_bytes: int, patience: float):
        self._folder, self._max, self._patience = folder, max_bytes, patience

    def open(self, shard: Shard) -> int:
        """A descriptor of the local copy, which is downloaded first where there is none. Closing it ends the
        lease.

        One process downloads; the others wait for it. Raises StorageError.
        """
        path = self._path(shard)
        try:
            if (file := _leased(path, shard.num_bytes)) is not None:
                return file
            with self._locked(path, wait=True) as lock:
                if (file := _leased(path, shard.num_bytes)) is None:
                    self._make_room(lock, shard.num_bytes)
                    file = self._fetch(shard, path)
                return file
        except OSError as err:
            raise storage_error(shard.url, err) from err

    def prefetch(self, shard: Shard) -> None:
        """Downloads the shard where it is not there, nobody does so already, and there is room for it. Errors
        are ignored: `open` meets and raises them again."""
        path = self._path(shard)
        with suppress(OSError):
            file = _leased(path, shard.num_bytes)
            if file is None:
                with self._locked(path, wait=False) as lock:
                    if (file := _leased(path, shard.num_bytes)) is None and self._make_room(
                        lock, shard.num_bytes
                    ):
                        file = self._fetch(shard, path)
            if file is not None:
                os.close(file)

    def kept(self, name: str, make: Callable[[], bytes]) -> Buffer:
        """The content of the small file `name`, mapped into memory. Where it is not there, one process makes
        it and the others wait. Raises the errors of `make`, and StorageError."""
        path = self._folder / name
        try:
            with suppress(FileNotFoundError):
                os.utime(path)
                return map_file(path)
            with self._locked(path, wait=True) as lock:
                with suppress(FileNotFoundError):
                    return map_file(path)
                data = make()
                self._make_room(lock, len(data))
                part = _part(path)
                part.write_bytes(data)
                # mapped before others see it, and may delete it
                mapped = map_file(part)
                os.replace(part, path)
                return mapped
        except OSError as err:
            raise storage_error(str(path), err) from err

    def forget(self, name: str) -> None:
        """Removes a small file."""
        (self._folder / name).unlink(missing_ok=True)

    def _path(self, shard: Shard) -> Path:
        told = shard.sha256 or hashlib.sha256(f"{shard.url} {shard.index_sha256}".encode()).hexdigest()
        return self._folder / f"{told[:32]}.tar"

    def _fetch(self, shard: Shard, path: Path) -> int:
        """Downloads the shard, and gives a descriptor of it with a lease."""
        _remove_parts(path)
        part = _part(path)
        download(shard.url, part, shard.num_bytes, shard.sha256, self._patience)
        file = _leased(part, shard.num_bytes)
        if file is None:
            raise FileNotFoundError(f"{part} was removed while it was fetched")
        os.replace(part, path)
        return file

    @contextmanager
    def _locked(self, path: Path, *, wait: bool) -> Iterator[int]:
        """While it is open, nobody else fetches the file; gives a descriptor of the lock file. wait False:
        raises BlockingIOError where somebody does."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = path.with_name(path.name + _LOCK)
        while (file := _lock(lock, wait=wait)) is None:
            # whoever held it has removed it
            pass
        try:
            yield file
        finally:
            with suppress(FileNotFoundError):
                lock.unlink()
            os.close(file)

    def _make_room(self, lock: int, incoming: int) -> bool:
        """Keeps room for `incoming` bytes: deletes files until they fit into the limit and onto the disk, or
        no file can be deleted any more. Returns whether they fit."""
        room = os.open(self._folder / ".room", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(room, fcntl.LOCK_EX)
            self._remove_left_parts()
            os.truncate(lock, incoming)
            found = sorted(self._files())
            used = sum(size for _, size, _ in found)
            for _, size, path in found:
                if self._fits(used, incoming):
                    break
                if not path.name.endswith(_LOCK) and _delete(path):
                    used -= size
            return self._fits(used, incoming)
        finally:
            os.close(room)

    def _fits(self, used: int, incoming: int) -> bool:
        return used <= self._max and shutil.disk_usage(self._folder).free >= incoming

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """(time of the last use, bytes, path) of every file; a lock file stands for what is fetched."""
        for entry in os.scandir(self._folder):
            if not entry.name.startswith(".") and not entry.name.endswith(_PART):
                with suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(found.st_mode):
                        yield found.st_mtime, found.st_size, Path(entry.path)

    def _remove_left_parts(self) -> None:
        """Removes what killed processes have left: lock files that nobody holds, and what was fetched under
        them."""
        for lock in self._folder.glob(f"*{_LOCK}"):
            with suppress(OSError):
                if (file := _lock(lock, wait=False, make=False)) is not None:
                    _remove_parts(lock.with_name(lock.name.removesuffix(_LOCK)))
                    lock.unlink(missing_ok=True)
                    os.close(file)


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


def default_cache(patience: float) -> ShardCache:
    """The cache where no config says otherwise."""
    return ShardCache(cache_folder(), int(GIB * 2**30), patience)


def _part(path: Path) -> Path:
    return path.with_name(path.name + _PART)


def _remove_parts(path: Path) -> None:
    """Removes what a process that was killed had fetched of a file. The caller holds its lock."""
    for part in (*path.parent.glob(f".{path.name}{_PART}.*"), _part(path)):
        part.unlink(missing_ok=True)


def _leased(path: Path, num_bytes: int) -> int | None:
    """A descriptor of the file with a lease; None where it is not there in this size. A file that is deleted
    at the same time is whole in the descriptor."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    fcntl.flock(file, fcntl.LOCK_SH)
    if os.fstat(file).st_size != num_bytes:
        os.close(file)
        return None
    with suppress(OSError):
        os.utime(file)
    return file


def _lock(path: Path, *, wait: bool, make: bool = True) -> int | None:
    """A descriptor of a lock file that this process holds; None where it was removed meanwhile. Raises
    BlockingIOError where another holds it and wait is False, FileNotFoundError where make is False and there
    is none."""
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0), 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if os.path.samestat(os.fstat(file), os.stat(path)):
            return file
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(file)
        raise
    os.close(file)
    return None


def _delete(path: Path) -> bool:
    """Deletes the file unless somebody reads it. Returns whether it is gone."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
