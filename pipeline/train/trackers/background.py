"""A tracker in a thread of its own: the run never waits for it, and goes on without it where it fails."""

import logging
from collections.abc import Callable
from queue import Full, Queue
from threading import Thread

from pipeline.errors import PipelineError, printable
from pipeline.train.trackers.tracker import Tracker

log = logging.getLogger(__name__)

MOST_WAITING = 1000
"""Reports that wait for a tracker that is slow; more, and it is told no more."""
CLOSES_WITHIN = 60.0
"""Seconds for what still waits when the run ends."""

Told = Callable[[Tracker], None]


class Background:
    """make: makes the tracker, in the thread. What goes wrong is said once."""

    def __init__(self, name: str, make: Callable[[], Tracker]):
        self._name, self._make = name, make
        self._waiting: Queue[Told | None] = Queue(MOST_WAITING)
        self._failed = False
        self._thread = Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def tell(self, told: Told) -> None:
        if self._failed:
            return
        try:
            self._waiting.put_nowait(told)
        except Full:
            self._give_up(f"{MOST_WAITING} reports wait for it")

    def close(self) -> None:
        """Waits for what was told, but not for ever."""
        if not self._failed:
            try:
                self._waiting.put(None, timeout=CLOSES_WITHIN)
            except Full:
                self._give_up("it does not answer")
                return
        self._thread.join(CLOSES_WITHIN)
        if self._thread.is_alive():
            self._give_up(f"it was not done {CLOSES_WITHIN:.0f} s after the run")

    def _work(self) -> None:
        try:
            tracker = self._make()
            while (told := self._waiting.get()) is not None and not self._failed:
                told(tracker)
            tracker.close()
        except PipelineError as err:
            self._give_up(str(err), own=True)
        except BaseException as err:  # a package may even exit; the thread alone ends
            self._give_up(f"{type(err).__name__}: {err}")

    def _give_up(self, why: str, *, own: bool = False) -> None:
        if self._failed:
            return
        self._failed = True
        if own:
            log.warning("%s", why)
        else:
            log.warning(
                "tracker '%s' is told no more, and the run goes on without it: %s",
                self._name,
                printable(why)[:1000],
            )
