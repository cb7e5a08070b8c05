"""Notes that ranks leave for one another while they do not answer in an exchange: in the store in which the
processes have met."""

import time
from datetime import timedelta
from threading import Lock
from typing import Any

STOP, SLOW = "dtem/stop", "dtem/slow"
PATIENCE = timedelta(seconds=10)
"""Longest wait for the store itself, which ends with the process or host that holds it."""
ASK_EVERY = 1.0
"""Seconds between two questions to the store."""
MOST = 2000
"""Characters of a note."""


class SharedNotes:
    """The notes of all ranks. store: a connection of its own to the store of the run; None for a process that
    is alone, which reads what it wrote.

    A store that does not answer has no notes: who needs one then ends by its own limit.
    """

    def __init__(self, store: Any = None):
        self._store, self._own = store, {}
        self._lock, self._last, self._stop = Lock(), 0.0, False
        if store is not None:
            store.set_timeout(PATIENCE)

    def ask_to_stop(self) -> None:
        """Tells all ranks that one of them was asked to stop."""
        self._write(STOP, "1")

    def stop_asked(self) -> bool:
        """Whether a rank was asked to stop, as of the last second."""
        if not self._stop and (now := time.monotonic()) - self._last > ASK_EVERY:
            self._last, self._stop = now, bool(self._read(STOP))
        return self._stop

    def write_slow(self, text: str) -> None:
        """Tells all ranks that this one goes on, but is slow, and why. A later note, of any rank, replaces
        it."""
        self._write(SLOW, f"{time.time_ns()} {text}"[:MOST])

    def slow(self) -> str:
        """The last note of a slow rank, behind a number of its own; empty where there is none."""
        return self._read(SLOW)

    def _write(self, key: str, text: str) -> None:
        with self._lock:
            try:
                self._own[key] = text
                if self._store is not None:
                    self._store.set(key, text)
            except RuntimeError:
                self._store = None

    def _read(self, key: str) -> str:
        with self._lock:
            try:
                if self._store is None:
                    return self._own.get(key, "")
                return self._store.get(key).decode(errors="replace") if self._store.check([key]) else ""
            except RuntimeError:
                self._store = None
                return ""
