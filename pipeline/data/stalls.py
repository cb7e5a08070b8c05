"""Waits for data workers: logs what they work at when a batch takes long, and stops when it takes too
long."""

import atexit
import logging
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Any, Generic, TypeVar
from weakref import finalize

from torch.utils.data import get_worker_info

from pipeline.errors import StopAsked, StorageError

log = logging.getLogger(__name__)
T = TypeVar("T")
WARN_EVERY = 60.0
"""Seconds between warnings while a batch is waited for."""
LOOK_EVERY = 1.0
"""Seconds between two looks at what else may have happened during a wait."""
LEAVE_WITHIN = 5.0
"""Seconds that the end of a wait, or of the process, gives to a batch under way."""
_LINE = 512


class WorkerNotes:
    """A line of text for each worker, in memory that the workers share with the process that waits for
    them."""

    def __init__(self, workers: int):
        self._lines = shared_bytes(_LINE * max(1, workers))

    def write(self, text: str) -> None:
        """Sets the line of this worker: what it works at now, or an empty text."""
        worker = get_worker_info()
        start = _LINE * (worker.id if worker else 0)
        self._lines[start : start + _LINE] = text.encode()[:_LINE].ljust(_LINE, b"\0")

    def read(self) -> str:
        """The lines that are not empty, in the order of the workers."""
        lines = (
            bytes(self._lines[start : start + _LINE]).rstrip(b"\0").decode(errors="replace")
            for start in range(0, len(self._lines), _LINE)
        )
        return "; ".join(line for line in lines if line) or "nothing that is known"


def shared_bytes(size: int) -> Any:
    """Zeros that this process shares with those that it starts, however it starts them; with slices, as a
    bytearray has."""
    return get_context("spawn").RawArray("c", size)


def never() -> bool:
    return False


def patiently(
    batches: Iterator[T], notes: WorkerNotes, limit: float, stopping: Callable[[], bool] = never
) -> Iterator[T]:
    """Yields the batches of the iterator of a DataLoader with workers. Raises StorageError for a batch that
    takes more than `limit` seconds, and StopAsked when `stopping` says meanwhile that nobody wants it any
    more."""
    every, start = min(WARN_EVERY, limit / 5), time.monotonic()
    warned = start
    with NextInThread(batches) as ahead:
        while True:
            try:
                loaded = ahead.next(min(LOOK_EVERY, limit / 10))
            except Empty:
                if stopping():
                    ahead.leave_late()
                    raise StopAsked("no batch is waited for any more") from None
                now = time.monotonic()
                if now - start > limit:
                    ahead.leave_late()
                    raise _too_long(now - start, notes) from None
                if now - warned > every:
                    warned = now
                    text = "waiting for a batch for %.0f s; the data workers are at: %s"
                    log.warning(text, now - start, notes.read())
                continue
            if loaded is None:
                return
            yield loaded
            start = warned = time.monotonic()


class NextInThread(Generic[T]):
    """Context manager with a thread that takes the next item of an iterator. What it waits for may ignore
    every timeout: a worker that hangs while it hands over a batch, for instance.

    At the end the thread goes when its item has come. The end waits for that, up to LEAVE_WITHIN: Python
    aborts a process that ends while a thread is in torch's code. After `leave_late` only the end of the
    process waits.
    """

    def __init__(self, items: Iterator[T]):
        self._items, self._ready = items, Queue[T | BaseException | None](maxsize=1)
        self._closed = Event()
        self._thread = Thread(target=self._fetch, name="batches", daemon=True)

    def __enter__(self) -> "NextInThread[T]":
        self._thread.start()
        self._leave = finalize(self, _leave, self._closed, self._thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def leave_late(self) -> None:
        """From now on nobody waits for the next item, which comes too late, but the end of the process."""
        if self._leave.detach() is not None:
            self._closed.set()
            atexit.register(self._thread.join, LEAVE_WITHIN)

    def next(self, seconds: float) -> T | None:
        """The next item; None after the last one. Raises Empty after so many seconds, and what the iterator
        has raised."""
        found = self._ready.get(timeout=seconds)
        if isinstance(found, BaseException):
            raise found
        return found

    def _fetch(self) -> None:
        try:
            for item in self._items:
                if not self._put(item):
                    return
            self._put(None)
        except BaseException as err:  # noqa: BLE001 - raised in the thread that waits
            self._put(err)

    def _put(self, item: T | BaseException | None) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=LOOK_EVERY / 10)
                return True
            except Full:
                continue
        return False


def _leave(closed: Event, thread: Thread) -> None:
    closed.set()
    thread.join(LEAVE_WITHIN)


def _too_long(seconds: float, notes: WorkerNotes) -> StorageError:
    return StorageError(
        f"no batch came for {seconds:.0f} s; the data workers are at: {notes.read()}. See to that storage or "
        "sample, then resume; where batches do take as long, raise data.max_wait"
    )
