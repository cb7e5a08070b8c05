"""Reads the members of a sample by their place in the shard: from local files, or from a bounded cache of
remote shards. The files of loose samples are read as they lie."""

import os
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache

from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.fetcher import Fetcher
from pipeline.data.shards.index import ShardIndex
from pipeline.data.shards.indexes import load_index
from pipeline.data.shards.locations import is_remote
from pipeline.data.shards.locks import release
from pipeline.data.shards.manifest import Manifest
from pipeline.data.shards.open_files import allow_open_files
from pipeline.data.shards.patience import persist, storage_error
from pipeline.data.shards.table import LooseSamples, Shard

GAP = 1 << 16
"""Bytes between two members up to which they are read at once, with what lies between."""


class SampleReader:
    """Reads samples by shard and number. width: shards that are in use at once; twice as many indexes and
    open files are kept, as far as the system allows. cache: of remote shards. suffixes: of the members that
    are read; None: all.

    patience: seconds for which storage that fails is asked again, for each read, or from `start_clock` on.
    remote: whether some of the shards are.
    """

    def __init__(
        self,
        manifest: Manifest,
        width: int,
        cache: ShardCache,
        patience: float,
        suffixes: Collection[str] | None = None,
    ):
        self._manifest, self._cache, self._patience = manifest, cache, patience
        self._suffixes = suffixes
        self.remote = any(is_remote(place.root) for place in manifest.shards.places)
        # a shard has two open files, its own and its index, and those ahead one each
        allowed = allow_open_files(4 * (2 * width + 1))
        self._kept = max(1, min(2 * width + 1, allowed // 4))
        self._index = lru_cache(maxsize=self._kept)(self._load_index)
        self._files: OrderedDict[int, int] = OrderedDict()
        self._fetcher = Fetcher(cache, max(1, allowed - 2 * self._kept))
        self._until: float | None = None
        self.disturbances: list[Callable[[int, dict[str, bytes]], dict[str, bytes]]] = []
        """Injected faults: each is given a shard and what was read of it, and returns that, something else,
        or raises OSError."""

    def start_clock(self) -> None:
        """Grants the patience anew, to all that is read from now on together."""
        self._until = time.monotonic() + self._patience

    def key(self, shard: int, sample: int) -> str:
        """The key of a sample. Raises StorageError where the index cannot be read, or is not the
        manifest's."""
        if (loose := self._manifest.shards.loose(shard)) is not None:
            return loose.key(self._manifest.shards.name(shard), sample)
        return self._index(shard).key(sample)

    def read(self, shard: int, sample: int) -> dict[str, bytes]:
        """Maps a suffix to the bytes of the member, for the wanted members of a sample. Raises StorageError
        where the shard cannot be read, or has another size than the manifest says, until the patience is
        over; SampleError for loose files of which no sample can be made."""
        if (loose := self._manifest.shards.loose(shard)) is not None:
            return persist(lambda: self._loose_members(loose, shard, sample), self._left())
        members = self._index(shard).members(sample, self._suffixes)
        return persist(lambda: self._members(shard, members), self._left())

    def prefetch(self, shards: Iterable[int]) -> None:
        """Downloads remote shards that will be read soon, in the background and in this order, in place of
        those that were named before. Others are closed, so that the cache may delete them."""
        named = {number: self._manifest.shards[number] for number in shards}
        for number in self._files.keys() - named.keys():
            release(self._files.pop(number))
        self._fetcher.want(shard for shard in named.values() if is_remote(shard.url))

    def _left(self) -> float:
        """Seconds of patience that are left."""
        return self._patience if self._until is None else max(0.0, self._until - time.monotonic())

    def _load_index(self, shard: int) -> ShardIndex:
        return load_index(self._manifest.shards[shard], self._cache, self._left())

    def _members(self, shard: int, members: Mapping[str, tuple[int, int]]) -> dict[str, bytes]:
        try:
            file, expected = self._file(shard), int(self._manifest.shards.num_bytes[shard])
            found = {}
            for start, end, names in _stretches(members):
                data = os.pread(file, end - start, start)
                for name in names:
                    offset, size = members[name]
                    found[name] = data[offset - start : offset - start + size]
            whole = all(len(found[suffix]) == size for suffix, (_, size) in members.items())
            if (there := os.fstat(file).st_size) != expected or not whole:
                raise OSError(
                    f"{there} bytes are there and the manifest says {expected}: it was cut off or replaced; "
                    "restore it"
                )
            return self._disturbed(shard, found)
        except OSError as err:
            # a network disk that was away leaves dead descriptors; what is restored may be a new file
            if shard in self._files:
                with suppress(OSError):
                    release(self._files.pop(shard))
            raise storage_error(self._manifest.shards.url(shard), err) from err

    def _loose_members(self, loose: LooseSamples, shard: int, sample: int) -> dict[str, bytes]:
        try:
            found = loose.members(self._manifest.shards.name(shard), sample)
            wanted = {
                suffix: data
                for suffix, data in found.items()
                if self._suffixes is None or suffix in self._suffixes
            }
            return self._disturbed(shard, wanted)
        except OSError as err:
            raise storage_error(str(err.filename or self._manifest.shards.url(shard)), err) from err

    def _disturbed(self, shard: int, found: dict[str, bytes]) -> dict[str, bytes]:
        for disturb in self.disturbances:
            found = disturb(shard, found)
        return found

    def _file(self, shard: int) -> int:
        """An open descriptor of the shard. pread leaves no position in it, so that forked workers can share
        it."""
        if shard not in self._files:
            if len(self._files) == self._kept:
                release(self._files.popitem(last=False)[1])
            self._files[shard] = self._open(self._manifest.shards[shard])
        self._files.move_to_end(shard)
        return self._files[shard]

    def _open(self, shard: Shard) -> int:
        return (
            self._cache.open(shard, self._left())
            if is_remote(shard.url)
            else os.open(shard.url, os.O_RDONLY | os.O_CLOEXEC)
        )

    def __del__(self) -> None:
        self._fetcher.close()
        for file in self._files.values():
            release(file)


def _stretches(members: Mapping[str, tuple[int, int]]) -> Iterator[tuple[int, int, list[str]]]:
    """(start, end, suffixes) of the parts of a shard that hold these members: one, unless much else lies
    between them."""
    start = end = 0
    names: list[str] = []
    for name, (offset, size) in sorted(members.items(), key=lambda item: item[1]):
        if names and offset - end > GAP:
            yield start, end, names
            names = []
        start = offset if not names else start
        end = offset + size
        names.append(name)
    if names:
        yield start, end, names
