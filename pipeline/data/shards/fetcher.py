"""Fetches remote shards before they are needed, in one thread of a process, and keeps those that are there
until they are no longer wanted."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from threading import Condition, Thread

from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.indexes import load_index
from pipeline.data.shards.locks import release
from pipeline.data.shards.table import Shard
from pipeline.errors import PipelineError

RETRY = 5.0
"""Seconds after which what could not be fetched is tried again: the storage failed, another process was at
it, or there was no room."""


class Fetcher:
    """Fetches one shard after the other, the one that is needed first, with its index. Each wanted shard that
    is there is leased, so no other one takes its room. What is no longer wanted is neither fetched nor kept.

    most: leases, each of which is an open file. Errors are ignored: reading meets and raises them again.
    """

    def __init__(self, cache: ShardCache, most: int):
        self._cache, self._most = cache, most
        self._wanted: list[Shard] | None = []
        """None once it is closed."""
        self._news = Condition()
        self._thread: Thread | None = None
        self._held: dict[str, int] = {}
        """Maps the URL of a shard to its lease; the thread's alone."""

    def want(self, shards: Iterable[Shard]) -> None:
        """Replaces what is wanted, in the order of need."""
        with self._news:
            self._wanted = list(shards)[: self._most]
            if self._thread is None:
                self._thread = Thread(target=self._run, name="shards", daemon=True)
                self._thread.start()
            self._news.notify()

    def close(self) -> None:
        """Ends all leases, and the thread, once its download is done."""
        with self._news:
            self._wanted = None
            self._news.notify()

    def _run(self) -> None:
        seen: list[Shard] = []
        lacks = False
        while (wanted := self._next(seen, RETRY if lacks else None)) is not None:
            lacks, seen = self._fetch(wanted), wanted
        for file in self._held.values():
            release(file)

    def _next(self, seen: list[Shard], seconds: float | None) -> list[Shard] | None:
        """What is wanted, once it is no longer the list `seen`, or so many seconds are over."""
        with self._news:
            self._news.wait_for(lambda: self._wanted is not seen, seconds)
            return self._wanted

    def _fetch(self, wanted: list[Shard]) -> bool:
        """Leases what is there, then fetches the rest, until something else is wanted. Returns whether
        something is lacking."""
        for url in self._held.keys() - {shard.url for shard in wanted}:
            release(self._held.pop(url))
        lacking = [shard for shard in wanted if not self._holds(shard, self._cache.lease)]
        for shard in lacking:
            if self._wanted is not wanted:
                break
            with suppress(PipelineError):
                load_index(shard, self._cache, 0.0)
            self._holds(shard, self._cache.prefetch)
        return any(shard.url not in self._held for shard in lacking)

    def _holds(self, shard: Shard, lease: Callable[[Shard], int | None]) -> bool:
        """Whether the shard is leased; if not, after this attempt."""
        if shard.url not in self._held and (file := lease(shard)) is not None:
            self._held[shard.url] = file
        return shard.url in self._held
