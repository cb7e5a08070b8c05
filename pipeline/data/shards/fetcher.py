"""Fetches remote shards before they are needed, in one thread of a process."""

from collections.abc import Iterable
from contextlib import suppress
from threading import Condition, Thread

from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.indexes import load_index
from pipeline.data.shards.table import Shard
from pipeline.errors import PipelineError

IDLE = 60.0
"""Seconds without anything to fetch after which the thread ends."""


class Fetcher:
    """Fetches one shard after the other, the one that is needed first, with its index. What is no longer
    wanted is not fetched any more, so nothing piles up behind a slow server."""

    def __init__(self, cache: ShardCache, patience: float):
        self._cache, self._patience = cache, patience
        self._wanted: list[Shard] = []
        self._asked: frozenset[str] = frozenset()
        self._changed = Condition()
        self._thread: Thread | None = None

    def want(self, shards: Iterable[Shard]) -> None:
        """Replaces what is still to be fetched, in the order of need. Errors are ignored: reading meets and
        raises them again."""
        wanted = list(shards)
        with self._changed:
            self._wanted = [shard for shard in wanted if shard.url not in self._asked]
            self._asked &= {shard.url for shard in wanted}
            if self._wanted and (self._thread is None or not self._thread.is_alive()):
                self._thread = Thread(target=self._run, name="shards", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        while (shard := self._next()) is not None:
            with suppress(PipelineError):
                load_index(shard, self._cache, self._patience)
                self._cache.prefetch(shard)

    def _next(self) -> Shard | None:
        """The shard to fetch now, which is waited for; None where there is none for IDLE seconds."""
        with self._changed:
            if not self._wanted:
                self._changed.wait(IDLE)
            if not self._wanted:
                self._thread = None
                return None
            shard = self._wanted.pop(0)
            self._asked |= {shard.url}
            return shard
