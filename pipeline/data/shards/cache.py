"""The cache of downloaded shards: a folder that all runs, ranks and workers of a machine share."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.data.shards.manifest import Shard
from pipeline.data.shards.storage import download, storage_error


class ShardCache:
    """max_bytes: limit of the whole folder. Above it, the shards that were not opened for longest are
    deleted. Shards that a reader has open stay, even if they alone are more. patience: seconds for which a
    server that fails is asked again.

    Each shard has a lock file, held while the shard is fetched, opened or deleted. An open shard has a shared
    lock on itself.
    """

    def __init__(self, folder: Path, max_bytes: int, patience: float):
        self._folder, self._max, self._patience = folder, max_bytes, patience

    def open(self, shard: Shard) -> int:
        """A descriptor of the local copy, which is downloaded first where there is none. Closing it lets the
        copy be deleted.

        One process downloads; the others wait for it. Raises StorageError.
        """
        try:
            with self._locked(shard, wait=True) as path:
                self._bring(shard, path)
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                fcntl.flock(file, fcntl.LOCK_SH)
                return file
        except OSError as err:
            raise storage_error(shard.url, err) from err

    def prefetch(self, shard: Shard) -> None:
        """Downloads the shard where nobody does so already. Errors are ignored: `open` meets and raises them
        again."""
        with suppress(OSError), self._locked(shard, wait=False) as path:
            self._bring(shard, path)

    @contextmanager
    def _locked(self, shard: Shard, *, wait: bool) -> Iterator[Path]:
        """While it is open, nobody else fetches, opens or deletes the shard; gives its path. wait False:
        raises BlockingIOError where somebody does."""
        path = self._folder / f"{shard.sha256[:32]}.tar"
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield path

    def _bring(self, shard: Shard, path: Path) -> None:
        if not path.exists() or path.stat().st_size != shard.num_bytes:
            # parts that a killed process has left
            for part in self._folder.glob(f".{path.name}.*.part"):
                part.unlink(missing_ok=True)
            self._make_room(shard.num_bytes)
            download(shard.url, path, shard.num_bytes, shard.sha256, self._patience)
            # others may have fetched something meanwhile
            self._make_room(0)
        os.utime(path)

    def _make_room(self, incoming: int) -> None:
        """Deletes shards until `incoming` bytes fit into the limit and onto the disk, or no shard can be
        deleted any more."""
        found = sorted(
            (stat.st_mtime, stat.st_size, path)
            for path in self._folder.rglob("*.tar")
            if (stat := _stat(path))
        )
        used = sum(size for _, size, _ in found)
        for _, size, path in found:
            if used + incoming <= self._max and shutil.disk_usage(self._folder).free >= incoming:
                return
            used -= size if _delete(path) else 0


def _delete(path: Path) -> bool:
    """Deletes the shard unless somebody fetches, opens or reads it. Returns whether it is gone."""
    try:
        with open(path.with_suffix(".lock"), "w") as lock, open(path, "rb") as file:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _stat(path: Path) -> os.stat_result | None:
    with suppress(FileNotFoundError):
        return path.stat()
    return None


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "dtem", "shards")
