"""Notes that ranks leave for one another while they do not answer in an exchange: in the store in which the
processes have met."""

import time
from datetime import timedelta
from threading import Event, Thread
from typing import Any

STOP, SLOW = "dtem/stop", "dtem/slow"
PATIENCE = timedelta(seconds=10)
"""Longest wait of the store for a note that it was asked for."""
ASK_EVERY = 1.0
"""Seconds between two exchanges with the store."""
CLOSES_WITHIN = 5.0
"""Seconds for the end of an exchange that is under way."""
MOST = 2000
"""Characters of a note."""


class SharedNotes:
    """The notes of all ranks. store: a connection of its own to the store of the run; None for a process that
    is alone, which reads what it wrote.

    A thread talks to the store, because a store whose process is stopped, or whose host is lost, may never
    answer. No method waits for it: what is read is its last answer, and asks for the next. A store that does
    not answer has no new notes: who needs one then ends by its own limit.
    """

    def __init__(self, store: Any = None):
        self._store = store
        self._notes: dict[str, str] = {}
        self._unsent: dict[str, str] = {}
        self._asked: set[str] = set()
        self._work, self._closed = Event(), Event()
        self._thread = Thread(target=self._talk, name="notes", daemon=True)
        if store is not None:
            store.set_timeout(PATIENCE)
            self._thread.start()

    def close(self) -> None:
        """Ends the thread: one that is in the store when the interpreter ends would abort the process."""
        self._closed.set()
        self._work.set()
        if self._thread.is_alive():
            self._thread.join(CLOSES_WITHIN)

    def ask_to_stop(self) -> None:
        """Tells all ranks that one of them was asked to stop."""
        self._write(STOP, "1")

    def stop_asked(self) -> bool:
        """Whether a rank was asked to stop, as of the last answer."""
        return bool(self._read(STOP))

    def write_slow(self, text: str) -> None:
        """Tells all ranks that this one goes on, but is slow, and why. A later note, of any rank, replaces
        it."""
        self._write(SLOW, f"{time.time_ns()} {text}"[:MOST])

    def slow(self) -> str:
        """The last note of a slow rank, behind a number of its own, as of the last answer; empty where there
        is none."""
        return self._read(SLOW)

    def _write(self, key: str, text: str) -> None:
        if self._store is None:
            self._notes[key] = text
        else:
            self._unsent[key] = text
            self._work.set()

    def _read(self, key: str) -> str:
        if self._store is not None:
            self._asked.add(key)
            self._work.set()
        return self._notes.get(key, "")

    def _talk(self) -> None:
        while self._work.wait() and not self._closed.is_set():
            self._work.clear()
            try:
                self._exchange()
            except RuntimeError:  # asked again, as a connection may be broken for a moment
                self._work.set()
            self._closed.wait(ASK_EVERY)

    def _exchange(self) -> None:
        for key in list(self._unsent):
            text = self._unsent[key]
            self._store.set(key, text)
            if self._unsent[key] == text:
                del self._unsent[key]
        for key in list(self._asked):
            if self._store.check([key]):
                self._notes[key] = self._store.get(key).decode(errors="replace")
            self._asked.discard(key)
