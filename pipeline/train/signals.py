"""Requests to stop. They set a flag, which the ranks look at together at points where a checkpoint can be
saved (`Meeting`)."""

import multiprocessing
import os
import signal
import sys
import time
from threading import Thread
from types import FrameType
from typing import Any

from pipeline.processes import end_at_once
from pipeline.train.notes import SharedNotes

BLOCKED = (signal.SIGTERM, signal.SIGUSR1)
REPEATED = 1.0
"""Seconds in which a second SIGINT is the same key press: launchers forward what the terminal has already
sent to all."""


class StopRequest:
    """Context manager that catches SIGTERM and SIGUSR1, and after `begin` also SIGINT, of which a second one
    raises KeyboardInterrupt, and a third one ends the process.

    Before `begin` there is nothing to save: a signal ends the process at once, with exit code 0, whatever its
    main thread waits for. After it a signal sets a flag, and tells the other ranks.

    Launchers and schedulers signal a whole process group. SIGTERM and SIGUSR1 are therefore blocked, which
    worker processes inherit: they go on loading until the run has stopped. A thread of ours waits for them; a
    thread that was there before may still receive one, which is what the handler is for. What blocks SIGTERM
    cannot be ended by it, as Python does to what is left at exit; so at the end, or at an error, the workers
    that were started meanwhile are killed.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._received = self._begun = self._closed = False
        self._interrupted: float | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        self._mask: set[Any] = set()
        self._before: set[Any] = set()
        self._notes: SharedNotes | None = None
        self._thread = Thread(target=self._wait, name="signals", daemon=True)

    def __enter__(self) -> "StopRequest":
        self._before = set(multiprocessing.active_children())
        self._handlers = {number: signal.signal(number, self._receive) for number in BLOCKED}
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
        self._thread.start()
        return self

    def begin(self, notes: SharedNotes | None = None) -> None:
        """From now on there is something to save. notes: where the other ranks are told."""
        self._notes = notes
        self._handlers[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        self._begun = True

    def __exit__(self, *_: object) -> None:
        _kill(set(multiprocessing.active_children()) - self._before)
        self._closed = True
        signal.pthread_kill(self._thread.ident or 0, signal.SIGUSR1)
        self._thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @property
    def asked(self) -> bool:
        """Whether this process was asked to stop."""
        # a signal to the main thread alone stays pending
        return self._received or not signal.sigpending().isdisjoint(BLOCKED)

    def heard(self) -> bool:
        """Whether this process was asked to stop, or has heard that another rank was. It asks the store, so
        it is for somebody who waits."""
        return self.asked or (self._notes is not None and self._notes.stop_asked())

    def _wait(self) -> None:
        while True:
            signal.sigwait(BLOCKED)
            if self._closed:
                return
            self._ask()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True
        # the thread goes on from here: the main thread may hold a lock that is needed for it
        signal.pthread_kill(self._thread.ident or 0, signal.SIGTERM)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a data worker, which inherits the handler
            return
        now = time.monotonic()
        if self._interrupted is None:
            self._interrupted = now
            self._receive(number, frame)
        elif now - self._interrupted > REPEATED:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            raise KeyboardInterrupt

    def _ask(self) -> None:
        if not self._begun:
            try:
                print(
                    "stopped as asked before the first step: there is nothing to save",
                    file=sys.stderr,
                    flush=True,
                )
            finally:  # also where nobody reads it any more
                end_at_once(0)
        self._received = True
        if self._notes is not None:
            self._notes.ask_to_stop()


def _kill(children: set[Any]) -> None:
    """Ends processes. Meanwhile torch's own handler, which takes the end of a worker for an error, is off."""
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        for child in children:
            child.kill()
        for child in children:
            child.join()
    finally:
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
