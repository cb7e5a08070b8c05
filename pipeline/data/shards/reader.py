"""Reads the members of a sample by their place in the shard: from local files, or from a bounded cache of
remote shards."""

import os
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from threading import Thread

from pipeline.data.shards.cache import ShardCache, cache_folder
from pipeline.data.shards.locations import is_remote
from pipeline.data.shards.manifest import Manifest, Shard
from pipeline.data.shards.storage import persist, storage_error
from pipeline.errors import PipelineError


class SampleReader:
    """Reads samples by shard and number. width: shards that are in use at once; twice as many indexes and
    open files are kept. cache_bytes: limit of the machine's cache of downloads.

    patience: seconds for which storage that fails is asked again.
    """

    def __init__(self, manifest: Manifest, width: int, cache_bytes: int, patience: float):
        self._manifest, self._patience = manifest, patience
        self._kept = 2 * width + 1
        self._index = lru_cache(maxsize=self._kept)(partial(manifest.index, patience=patience))
        self._files: OrderedDict[int, int] = OrderedDict()
        self._cache = ShardCache(cache_folder(), cache_bytes, patience)
        self._asked: set[int] = set()

    def key(self, shard: int, sample: int) -> str:
        """The key of a sample. Raises StorageError where the index cannot be read, or is not the
        manifest's."""
        return self._index(shard).keys[sample]

    def read(self, shard: int, sample: int) -> dict[str, bytes]:
        """Maps a suffix to the bytes of the member, for all members of a sample. Raises StorageError where
        the shard cannot be read, or has another size than the manifest says, for `patience` seconds."""
        members = self._index(shard).members(sample)
        return persist(lambda: self._members(shard, members), self._patience)

    def prefetch(self, shards: Iterable[int]) -> None:
        """Downloads remote shards that will be read soon, in the background. Errors are ignored: reading
        meets and raises them again."""
        remote = [shard for shard in shards if is_remote(self._manifest.shards[shard].url)]
        new = [self._manifest.shards[shard] for shard in remote if shard not in self._asked]
        self._asked = set(remote)
        if new:
            Thread(target=self._fetch_all, args=(new,), name="shards", daemon=True).start()

    def _fetch_all(self, shards: list[Shard]) -> None:
        for shard in shards:
            with suppress(PipelineError):
                self._cache.prefetch(shard)

    def _members(self, shard: int, members: Mapping[str, tuple[int, int]]) -> dict[str, bytes]:
        try:
            file, expected = self._file(shard), self._manifest.shards[shard].num_bytes
            found = {suffix: os.pread(file, size, offset) for suffix, (offset, size) in members.items()}
            whole = all(len(found[suffix]) == size for suffix, (_, size) in members.items())
            if (there := os.fstat(file).st_size) != expected or not whole:
                raise OSError(
                    f"{there} bytes are there and the manifest says {expected}: it was cut off or replaced; "
                    "restore it"
                )
            return found
        except OSError as err:
            # a network disk that was away leaves dead descriptors; what is restored may be a new file
            if shard in self._files:
                with suppress(OSError):
                    os.close(self._files.pop(shard))
            raise storage_error(self._manifest.shards[shard].url, err) from err

    def _file(self, shard: int) -> int:
        """An open descriptor of the shard. pread leaves no position in it, so that forked workers can share
        it."""
        if shard not in self._files:
            if len(self._files) == self._kept:
                os.close(self._files.popitem(last=False)[1])
            self._files[shard] = self._open(self._manifest.shards[shard])
        self._files.move_to_end(shard)
        return self._files[shard]

    def _open(self, shard: Shard) -> int:
        return (
            self._cache.open(shard)
            if is_remote(shard.url)
            else os.open(shard.url, os.O_RDONLY | os.O_CLOEXEC)
        )

    def __del__(self) -> None:
        for file in self._files.values():
            os.close(file)
