"""A word where data is what a run waits for."""

import os

from pipeline.config.schema import RunConfig
from pipeline.errors import first_few

MUCH = 0.3
"""Share of the time from which it is said."""
IN_ROW = 2
"""Reports in a row that have it: the first batches of a run are late by nature."""


class DataWait:
    """Says it once in a process."""

    def __init__(self, config: RunConfig):
        self._config, self._in_row, self._told = config, 0, False

    def word(self, share: float) -> str | None:
        """The warning, or None. share: of the time since the last report that was spent waiting for data."""
        self._in_row = self._in_row + 1 if share >= MUCH else 0
        if self._told or self._in_row < IN_ROW:
            return None
        self._told = True
        fed = {name: task.data for name, task in self._config.tasks.items() if not task.frozen}
        pool = self._config.train.workers
        own = [f"tasks.{name}.data.workers, now {data.workers}" for name, data in fed.items()]
        workers = own if pool is None else [f"train.workers, now {pool}"]
        ways = [f"more processes that read ({first_few(workers, 3, ', ')}; {_cores()} cores here)"]
        if any("://" in str(data.train) for data in fed.values()):
            ways.append("a cache on a local disk (data.cache_dir, data.cache_gib)")
        ways.append("smaller images in the shards, which cost less to decode")
        return (
            f"WARNING {100 * share:.0f} % of the time is spent waiting for data. Ways out: {'; '.join(ways)}"
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0))
