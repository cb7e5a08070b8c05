"""A request to stop is a flag that is looked at between steps, so that a run ends with a checkpoint and not inside one."""

import signal
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from pipeline.interfaces import Engine

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Context manager that catches SIGTERM and SIGUSR1. A second signal changes nothing.

    Launchers and schedulers signal a whole process group. The signals are therefore blocked, which worker processes inherit: they
    go on loading until the run has stopped. A thread that was there before may still receive one, which is what the handler is for.
    """

    def __init__(self) -> None:
        self._received = False
        self._handlers: dict[signal.Signals, Any] = {}
        self._mask: set[Any] = set()
        self._asked: _Later | None = None

    def __enter__(self) -> "StopRequest":
        self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        return self

    def __exit__(self, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def agreed(self, engine: Engine) -> bool:
        """Whether any rank was asked to stop; the same answer on every rank. Called by all ranks after every step.

        With several ranks it is the answer of the step before, which has long arrived: the device never waits for it.
        """
        here = self._received or not signal.sigpending().isdisjoint(SIGNALS)
        if engine.world_size == 1:
            return here
        asked, self._asked = self._asked, _Later(engine.all_reduce(torch.full((1,), float(here), device=engine.device)))
        return asked is not None and asked.read() > 0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = True


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
