"""A request to stop is a flag that is looked at between steps, so that a run ends with a checkpoint and not inside one."""

import signal
from types import FrameType

import torch
from torch import Tensor

from pipeline.interfaces import Engine

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Context manager that catches SIGTERM and SIGUSR1. A second signal changes nothing."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}
        self._asked: _Later | None = None

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def agreed(self, engine: Engine) -> bool:
        """Whether any rank was asked to stop; the same answer on every rank. Called by all ranks after every step.

        With several ranks it is the answer of the step before, which has long arrived: the device never waits for it.
        """
        if engine.world_size == 1:
            return self.received is not None
        asked, self._asked = self._asked, _Later(engine.all_reduce(torch.tensor([float(self.received is not None)], device=engine.device)))
        return asked is not None and asked.read() > 0

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)


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
