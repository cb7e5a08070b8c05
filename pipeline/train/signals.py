"""Requests to stop. They set a flag that is read between steps, so that a run ends with a whole
checkpoint."""

import multiprocessing
import signal
import time
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from pipeline.ranks import Ranks

BLOCKED = (signal.SIGTERM, signal.SIGUSR1)
REPEATED = 1.0
"""Seconds in which a second SIGINT is the same key press: launchers forward what the terminal has already
sent to all."""


class StopRequest:
    """Context manager that catches SIGTERM, SIGUSR1 and SIGINT. A second SIGINT raises KeyboardInterrupt, a
    third ends the process.

    Launchers and schedulers signal a whole process group. SIGTERM and SIGUSR1 are therefore blocked, which
    worker processes inherit: they go on loading until the run has stopped. A thread that was there before may
    still receive one, which is what the handler is for. What blocks SIGTERM cannot be ended by it, as Python
    does to what is left at exit; so at the end, or at an error, the workers that were started meanwhile are
    killed.
    """

    def __init__(self) -> None:
        self._received = False
        self._interrupted: float | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        self._mask: set[Any] = set()
        self._before: set[Any] = set()
        self._asked: _Later | None = None

    def __enter__(self) -> "StopRequest":
        self._before = set(multiprocessing.active_children())
        self._handlers = {number: signal.signal(number, self._receive) for number in BLOCKED}
        self._handlers[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
        return self

    def __exit__(self, *_: object) -> None:
        _kill(set(multiprocessing.active_children()) - self._before)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def agreed(self, ranks: Ranks) -> bool:
        """Whether any rank was asked to stop; the same on every rank. All ranks call it after every step.

        With several ranks it is the answer of the last call, which has long arrived, so that nobody waits.
        """
        here = self._received or not signal.sigpending().isdisjoint(BLOCKED)
        if ranks.world_size == 1:
            return here
        asked = self._asked
        self._asked = _Later(ranks.all_reduce(torch.full((1,), float(here), device=ranks.device)))
        return asked is not None and asked.read() > 0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._interrupted is None:
            self._received, self._interrupted = True, now
        elif now - self._interrupted > REPEATED:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            raise KeyboardInterrupt


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


class _Later:
    """A device scalar on its way to the host."""

    def __init__(self, value: Tensor):
        self._value = value.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if value.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def read(self) -> float:
        if self._arrived is not None:
            self._arrived.synchronize()
        return float(self._value)
