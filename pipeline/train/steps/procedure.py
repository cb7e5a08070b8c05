"""What a procedure is given for an optimizer step, and what it promises."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from pipeline.interfaces import Batch, Engine, StepSpec, TaskOutput
from pipeline.registry import Registry
from pipeline.train.conflict import GradientProbe
from pipeline.train.metrics import MetricSums


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch on the device. share: of its loss in its task's loss of the step. last: of the step's."""

    batch: Batch
    spec: StepSpec
    share: float
    last: bool


@dataclass(frozen=True)
class StepWork:
    """The means of one optimizer step. A procedure puts them in order; none of them asks the device
    anything."""

    engine: Engine
    micro_batches: Iterator[MicroBatch]
    """Loaded as they are asked for. The storage may fail then, so all are taken before the first `step`."""
    rates: Mapping[str, float]
    """Learning rate of each parameter group; 0 where it rests."""
    sums: MetricSums
    probe: GradientProbe | None
    """Where the tasks' gradients are measured in this step."""

    def forward(self, micro: MicroBatch, *, predictions: bool = False) -> TaskOutput:
        """The model's output; without the predictions, which may be as large as all that the backward pass
        needs, unless they are asked for."""
        output = self.engine.forward(micro.batch, micro.spec)
        return output if predictions else replace(output, predictions=None)

    def backward(self, micro: MicroBatch, output: TaskOutput, *, last: bool) -> None:
        """Adds the gradients of the micro-batch's share, and notes what is logged. last: before a `step`."""
        if self.probe is not None:
            self.probe.watch(micro.batch.task, output, micro.share)
        self.engine.backward(output.loss * micro.share, last=last)
        self.sums.add(output.logs, f"{micro.batch.task}/")

    def step(self) -> Tensor:
        """Moves the weights and clears the gradients; the gradient norm before clipping, on the device."""
        assert next(self.micro_batches, None) is None, "a procedure takes all micro-batches before it steps"
        return self.engine.step(self.rates)


class Procedure(Protocol):
    """Carries out optimizer steps. It keeps nothing from step to step: what has to stay is a parameter or a
    buffer of the model (of its balancing, its objective), and so is saved with it."""

    modes: tuple[str, ...]
    """Values of `train.mode` that it carries out."""

    def spec(self, step: int) -> StepSpec:
        """What step number `step` is for: a pure function of the number. Each micro-batch's own reduction and
        draw are filled in later."""
        ...

    def __call__(self, work: StepWork) -> Tensor:
        """One step: forward and backward passes in any number and order, and `step` behind them. The gradient
        norm, on the device; where it is not finite the step counts as skipped."""
        ...


STEPS: Registry[Procedure] = Registry("step")
"""Filled by `pipeline.train.steps`; import it from there."""
