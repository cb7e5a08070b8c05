"""The plain procedure: every step trains all that the mode trains, by the sum of the micro-batches'
gradients."""

from torch import Tensor

from pipeline.config.schema import TrainConfig
from pipeline.interfaces import StepSpec
from pipeline.parts import BALANCE, METRIC, TRAINED
from pipeline.train.steps.procedure import STEPS, StepWork


@STEPS.register("plain")
class Plain:
    """Merges are relaxed if embeddings learn."""

    modes: tuple[str, ...] = ("modular", "joint", "backbone", "heads")

    def __init__(self, train: TrainConfig):
        """No options."""
        self._trains = TRAINED[train.mode]

    def spec(self, step: int) -> StepSpec:
        return StepSpec(self._trains | {BALANCE}, relaxed=METRIC in self._trains)

    def __call__(self, work: StepWork) -> Tensor:
        for micro in work.micro_batches:
            work.backward(micro, work.forward(micro), last=micro.last)
        return work.step()
