"""Copies checkpoints to the mirror behind the run: a mirror that is slow, or fails, stops nothing."""

import logging
from collections.abc import Collection
from pathlib import Path
from threading import Condition, Thread

from pipeline.train.collective import said
from pipeline.train.mirror import Mirror

log = logging.getLogger(__name__)

AT_THE_END = 600.0
"""Longest time in seconds that a run which is done waits for the copy of its last checkpoint."""
IN_A_HURRY = 10.0
"""And one that was asked to stop, or has failed."""


class Copier:
    """A thread of rank 0. It copies one checkpoint at a time; of those that were saved meanwhile it takes the
    newest next. Does nothing without a mirror."""

    def __init__(self, mirror: Mirror | None, keep: int):
        """keep: number of checkpoints that stay there, beside the best."""
        self._mirror, self._keep = mirror, keep
        self._changed = Condition()
        self._next: Path | None = None
        self._now: Path | None = None
        self._closed = False
        # it may hang in a transfer; then the process ends without it
        self._thread = Thread(target=self._work, name="mirror", daemon=True)

    def copy(self, folder: Path) -> None:
        """Copies the checkpoint, and none that was to come before."""
        if self._mirror is None:
            return
        with self._changed:
            self._next = folder
            self._changed.notify()
        if self._thread.ident is None:
            self._thread.start()

    def needed(self) -> Collection[Path]:
        """The checkpoints that it reads now, or next."""
        with self._changed:
            return {folder for folder in (self._now, self._next) if folder is not None}

    def close(self, seconds: float) -> None:
        """Waits so long for what is to be copied, and says what is not."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(seconds)
        if self._mirror is not None and (left := self.needed()):
            log.warning(
                "the run ends before %s is copied to %s; the next start copies what is newest then",
                *(max(left), self._mirror.url),
            )

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._closed)
                if self._next is None:
                    return
                self._now, self._next = self._next, None
            self._put(self._now)
            with self._changed:
                self._now = None

    def _put(self, folder: Path) -> None:
        assert self._mirror is not None
        try:
            self._mirror.put(folder, self._keep)
        except Exception as err:  # noqa: BLE001 - whatever a server answers
            log.warning(
                "%s was not copied to %s (%s); it is on this disk alone, and the next one will be copied",
                *(folder, self._mirror.url, said(err)),
            )
