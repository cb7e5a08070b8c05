"""Reads the members of a sample by their place in the shard: from local files, or from a bounded cache of remote shards."""

import fcntl
import os
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from threading import Thread

from pipeline.data.manifest_format import Manifest, Shard
from pipeline.data.source import is_remote
from pipeline.data.storage import download
from pipeline.data.tarindex import ShardIndex
from pipeline.errors import SampleError


class SampleReader:
    """width: shards that are in use at once; twice as many indexes, open files and cached downloads are kept."""

    def __init__(self, manifest: Manifest, width: int):
        self._manifest = manifest
        self._kept = 2 * width + 1
        self._index = lru_cache(maxsize=self._kept)(manifest.index)
        self._files: OrderedDict[int, int] = OrderedDict()
        self._cache = ShardCache(cache_folder() / manifest.digest[:16], self._kept)
        self._asked: set[int] = set()

    def key(self, shard: int, sample: int) -> str:
        """Raises SampleError where the index cannot be read."""
        return self._index(shard).keys[sample]

    def read(self, shard: int, sample: int) -> dict[str, bytes]:
        """suffix -> bytes of every member. Raises SampleError."""
        index: ShardIndex = self._index(shard)
        file = self._file(shard)
        return {suffix: self._read(file, offset, size) for suffix, (offset, size) in index.members(sample).items()}

    def prefetch(self, shards: Iterable[int]) -> None:
        """Downloads remote shards that will be read soon, in the background; what fails here fails again, and is told, on reading."""
        remote = [shard for shard in shards if is_remote(self._manifest.shards[shard].url)]
        new = [self._manifest.shards[shard] for shard in remote if shard not in self._asked]
        self._asked = set(remote)
        if new:
            Thread(target=self._fetch_all, args=(new,), name="shards", daemon=True).start()

    def _fetch_all(self, shards: list[Shard]) -> None:
        for shard in shards:
            with suppress(SampleError, OSError):
                self._cache.fetch(shard, wait=False)

    @staticmethod
    def _read(file: int, offset: int, size: int) -> bytes:
        data = os.pread(file, size, offset)
        if len(data) != size:
            raise SampleError(f"{len(data)} bytes instead of {size} at byte {offset}: the shard is shorter than its index")
        return data

    def _file(self, shard: int) -> int:
        """An open descriptor. pread leaves no position in it, so that a forked worker can share it."""
        if shard not in self._files:
            if len(self._files) == self._kept:
                os.close(self._files.popitem(last=False)[1])
            self._files[shard] = self._open(self._manifest.shards[shard])
        self._files.move_to_end(shard)
        return self._files[shard]

    def _open(self, shard: Shard) -> int:
        try:
            return os.open(self._cache.fetch(shard) if is_remote(shard.url) else shard.url, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as err:
            raise SampleError(f"{shard.url}: {err.strerror or err}") from err

    def __del__(self) -> None:
        for file in self._files.values():
            os.close(file)


class ShardCache:
    """Downloaded shards in a folder that all ranks and workers of a machine share; the least recently used ones are deleted."""

    def __init__(self, folder: Path, max_shards: int):
        self._folder = folder
        self._max = max_shards

    def fetch(self, shard: Shard, *, wait: bool = True) -> Path:
        """The local copy, downloaded first where it is not there. One process downloads; the others wait for it, or leave it to it."""
        path = self._folder / f"{shard.index_sha256[:32]}.tar"
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if not path.exists() or path.stat().st_size != shard.num_bytes:
                self._make_room(1)
                self._download(shard, path)
                self._make_room(0)  # another process or thread may have fetched another shard meanwhile
            os.utime(path)
        return path

    @staticmethod
    def _download(shard: Shard, path: Path) -> None:
        try:
            download(shard.url, path, shard.num_bytes, shard.sha256)
        except FileNotFoundError as err:
            raise SampleError(f"{shard.url} is missing; restore it, or name the shards that are there") from err

    def _make_room(self, incoming: int) -> None:
        """An evicted file that another process has open stays readable there until it is closed."""
        found = sorted(self._folder.glob("*.tar"), key=_last_use)
        for path in found[: max(0, len(found) + incoming - self._max)]:
            path.unlink(missing_ok=True)


def _last_use(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process evicted it just now
        return 0.0


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "dtem", "shards")
