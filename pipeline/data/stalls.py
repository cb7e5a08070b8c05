"""Waits for data workers: logs what they work at when a batch takes long, and stops when it takes too
long."""

import logging
import mmap
import time
from collections.abc import Iterator

from torch.utils.data import get_worker_info

from pipeline.data.quarantine import Loaded
from pipeline.errors import StorageError

log = logging.getLogger(__name__)
WARN_EVERY = 60.0
"""Seconds between warnings while a batch is waited for."""
_LINE = 512
_TIMED_OUT = "DataLoader timed out"


class WorkerNotes:
    """A line of text for each worker, in memory that the forked workers share with the process that waits for
    them."""

    def __init__(self, workers: int):
        self._lines = mmap.mmap(-1, _LINE * max(1, workers))

    def write(self, text: str) -> None:
        """Sets the line of this worker: what it works at now, or an empty text."""
        worker = get_worker_info()
        start = _LINE * (worker.id if worker else 0)
        self._lines[start : start + _LINE] = text.encode()[:_LINE].ljust(_LINE, b"\0")

    def read(self) -> str:
        """The lines that are not empty, in the order of the workers."""
        lines = (
            self._lines[start : start + _LINE].rstrip(b"\0").decode(errors="replace")
            for start in range(0, len(self._lines), _LINE)
        )
        return "; ".join(line for line in lines if line) or "nothing that is known"


def poll_seconds(limit: float) -> float:
    """The `timeout` of a DataLoader whose iterator is given to `patiently`."""
    return min(1.0, limit / 10)


def patiently(batches: Iterator[Loaded], notes: WorkerNotes, limit: float) -> Iterator[Loaded]:
    """Yields the batches of a DataLoader's iterator, which raises an error after each `poll_seconds` without
    a batch. Raises StorageError for a batch that takes more than `limit` seconds."""
    every = min(WARN_EVERY, limit / 5)
    while True:
        start = warned = time.monotonic()
        while True:
            try:
                loaded = next(batches)
                break
            except StopIteration:
                return
            except RuntimeError as err:
                if not str(err).startswith(_TIMED_OUT):
                    raise
            now = time.monotonic()
            if now - start > limit:
                raise StorageError(
                    f"no batch came for {now - start:.0f} s; the data workers are at: {notes.read()}. "
                    "See to that storage or sample, "
                    "then resume; where batches do take as long, raise data.max_wait"
                )
            if now - warned > every:
                warned = now
                log.warning(
                    "waiting for a batch for %.0f s; the data workers are at: %s", now - start, notes.read()
                )
        yield loaded
