"""The protocol of a fault, and the registry of all."""

from typing import Protocol

from pipeline.config.schema import RunConfig
from pipeline.data.stream import TrainStream
from pipeline.engine.protocol import Engine
from pipeline.interfaces import Progress
from pipeline.registry import Registry


class Victim(Protocol):
    """What faults see of the run that they strike."""

    engine: Engine
    streams: dict[str, TrainStream]
    progress: Progress

    @property
    def config(self) -> RunConfig: ...

    @property
    def total_steps(self) -> int: ...


class Fault(Protocol):
    """A fault that strikes once. Its options are those of a spec: `step`, the number of the step before which
    it strikes, or `save`, that of a save of this process from 1 on; `rank`, None for all ranks."""

    step: int | None
    save: int | None
    rank: int | None

    def prepare(self, run: Victim) -> None:
        """On every rank, before the first step and before data workers are started. Raises ConfigError where
        it cannot strike."""
        ...

    def strike(self, run: Victim) -> None: ...


FAULTS: Registry[Fault] = Registry("fault")
"""Filled by `pipeline.train.faults`; import it from there."""


class AtStep:
    """Base of a fault before a step."""

    save: int | None = None

    def __init__(self, step: int, rank: int | None):
        self.step: int | None = step
        self.rank = rank

    def prepare(self, run: Victim) -> None:
        """Nothing to prepare."""
