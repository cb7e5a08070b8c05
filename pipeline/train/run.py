"""The parts of a run."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.config.schema import RunConfig
from pipeline.data.augment.mixing import BatchMixer
from pipeline.data.stream import EvalLoader, TrainStream
from pipeline.engine.protocol import Engine
from pipeline.interfaces import Batch, Progress
from pipeline.plan.resolve import ResolvedRun
from pipeline.run_folder import checkpoints_of
from pipeline.train.bilevel import Bilevel
from pipeline.train.conflict import GradientProbe
from pipeline.train.ema import Ema
from pipeline.train.faults.injection import Injection
from pipeline.train.gate import GradientGate
from pipeline.train.kind_norms import KindNorms
from pipeline.train.meeting import Meeting
from pipeline.train.save_times import SaveTimes
from pipeline.train.saving import Saver
from pipeline.train.steps.procedure import Procedure
from pipeline.train.waiting import DataWait


@dataclass
class Run:
    """The parts of a run. `engine`, `ema`, `streams` and `progress` change as it trains; the rest stays as
    built."""

    resolved: ResolvedRun
    engine: Engine
    procedure: Procedure
    groups: list[dict[str, Any]]
    gate: GradientGate
    ema: Ema | None
    probe: GradientProbe | None
    bilevel: Bilevel | None
    kind_norms: KindNorms | None
    streams: dict[str, TrainStream]
    loaders: dict[str, EvalLoader]
    mixers: dict[str, BatchMixer]
    open: dict[str, Iterator[Batch]]
    """Iterators of the streams, while the run trains."""
    about: list[str]
    """Lines that describe the run and where it begins."""
    meeting: Meeting
    """Where the ranks meet before each batch."""
    faults: Injection
    """Faults that the user puts into the run."""
    lock: AbstractContextManager[Any]
    """Lock of the output, held by rank 0; closing it lets another run in."""
    progress: Progress
    saver: Saver
    save_times: SaveTimes
    origins: tuple[str, ...]
    """The paths from which this run was started with `--resume PATH`."""
    reported: int
    """Step of the last report, or the first step of this process: reported means are over the steps since."""
    data_wait: DataWait
    """Says where a run waits for its data."""
    nonfinite: Tensor
    """[2] on the device: number of skipped steps in a row now, and the largest since the last report."""

    @property
    def config(self) -> RunConfig:
        return self.resolved.config

    @property
    def total_steps(self) -> int:
        assert self.resolved.total_steps is not None, "the streams say how long an epoch is"
        return self.resolved.total_steps

    @property
    def out_of_patience(self) -> bool:
        """Whether `train.patience` evaluations in a row were no better than the best; without a score that
        counts there is none to beat."""
        settings, best = self.config.train, self.progress.best_step
        if settings.patience is None or settings.eval_every is None:
            return False
        if best is None or self.progress.best is None:
            return False
        since = self.progress.evaluated // settings.eval_every - best // settings.eval_every
        return since >= settings.patience

    @property
    def epoch_steps(self) -> float:
        assert self.resolved.epoch_steps is not None, "the streams say how long an epoch is"
        return self.resolved.epoch_steps

    @property
    def classes(self) -> dict[str, list[str]]:
        """Maps a task to the class names of its labels; an empty list where it has none."""
        return {name: list(data.classes) for name, data in (self.loaders | self.streams).items()}

    @property
    def root(self) -> Path:
        """The folder of the checkpoints."""
        return checkpoints_of(Path(self.config.output))
