"""The plain procedure: every step trains all that the mode trains, by the sum of the micro-batches'
gradients."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.config.schema import RunConfig, TrainConfig
from pipeline.data.stream import TrainStream
from pipeline.interfaces import StepSpec
from pipeline.parts import BALANCE, METRIC, TRAINED
from pipeline.train.steps.procedure import STEPS, StepWork


@STEPS.register("plain")
class Plain:
    """Merges are relaxed if embeddings learn."""

    peers: int = 1
    modes: tuple[str, ...] = ("modular", "joint", "backbone", "heads")

    def __init__(self, train: TrainConfig):
        """No options."""
        self._trains = TRAINED[train.mode]

    def check(self, config: RunConfig) -> None:
        """Any configuration."""

    def begin(self, streams: Mapping[str, TrainStream], epoch_steps: float, device: torch.device) -> None:
        """It needs nothing."""

    def state(self) -> dict[str, Tensor]:
        return {}

    def spec(self, step: int) -> StepSpec:
        return StepSpec(self._trains | {BALANCE}, relaxed=METRIC in self._trains)

    def __call__(self, work: StepWork) -> Tensor:
        for micro in work.micro_batches:
            work.backward(micro, work.forward(micro), last=micro.last)
        return work.step()
