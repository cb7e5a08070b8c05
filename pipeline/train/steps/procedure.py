"""The interface of a procedure, which carries out optimizer steps, and the means that it is given."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from pipeline.config.schema import RunConfig
from pipeline.data.stream import TrainStream
from pipeline.engine.protocol import Engine
from pipeline.interfaces import Batch, StepSpec, TaskOutput
from pipeline.registry import Registry
from pipeline.train.bilevel import Lesson
from pipeline.train.conflict import GradientProbe
from pipeline.train.metrics import MetricSums


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch on the device."""

    batch: Batch
    spec: StepSpec
    share: float
    """Factor of its loss in its task's loss of the step."""
    last: bool
    """Whether the micro-batch is the last one of the step."""


@dataclass(frozen=True)
class StepWork:
    """The means of one optimizer step, which a procedure calls in its own order. None of them makes the host
    wait for the device."""

    engine: Engine
    micro_batches: Iterator[MicroBatch]
    """Loaded one by one as they are taken. The storage may fail then, so all are taken before the first
    `step`."""
    rates: Mapping[str, float]
    """Learning rate of each parameter group; 0 where it rests."""
    sums: MetricSums
    probe: GradientProbe | None
    """Given if the tasks' gradients are measured in this step."""
    number: int
    """Of the step in the run."""
    lesson: Lesson | None = None
    """Given if the balancing learns from the backward passes of this step."""

    def forward(self, micro: MicroBatch, *, predictions: bool = False) -> TaskOutput:
        """The model's output. predictions: whether it keeps the predictions, which may be as large as all
        that the backward pass needs."""
        output = self.engine.forward(micro.batch, micro.spec)
        return output if predictions else replace(output, predictions=None)

    def backward(self, micro: MicroBatch, output: TaskOutput, *, last: bool) -> None:
        """Adds the gradients of the loss times the micro-batch's share, and adds its logs. last: whether a
        `step` follows."""
        if self.probe is not None:
            self.probe.watch(micro.batch.task, output, micro.share)
        if self.lesson is not None:
            self.lesson.backward(micro.batch.task, output, micro.share, last=last)
        else:
            self.engine.backward(output.loss * micro.share, last=last)
        self.sums.add(output.logs, f"{micro.batch.task}/")

    def step(self) -> Tensor:
        """Updates the weights and clears the gradients. Returns the gradient norm before clipping, on the
        device."""
        assert next(self.micro_batches, None) is None, "a procedure takes all micro-batches before it steps"
        return self.engine.step(self.rates)


class Procedure(Protocol):
    """Carries out optimizer steps. What it keeps from step to step belongs to the model (to its balancing,
    its objective) as a parameter or buffer, and so is saved with it; what it knows of single samples is its
    `state`."""

    modes: tuple[str, ...]
    """The values of `train.mode` that it can carry out."""
    peers: int
    """2 where it trains two networks (`backbone.peers`); 1 where it trains any number."""

    def check(self, config: RunConfig) -> None:
        """Raises ConfigError for a configuration that it cannot carry out."""
        ...

    def begin(self, streams: Mapping[str, TrainStream], epoch_steps: float, device: torch.device) -> None:
        """Called before the first step of a run, and before `state` is restored. epoch_steps: steps of an
        epoch."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What it knows of samples, by name: tensors that are the same on every rank. They are saved, and
        filled where a run goes on."""
        ...

    def spec(self, step: int) -> StepSpec:
        """The intention of step number `step`: a pure function of the number. Reduction and draw of each
        micro-batch are filled in later."""
        ...

    def __call__(self, work: StepWork) -> Tensor:
        """Carries out one step: forward and backward passes in any number and order, then `step`. Returns the
        gradient norm, on the device; if it is not finite, the step counts as skipped."""
        ...


STEPS: Registry[Procedure] = Registry("step")
"""Filled by `pipeline.train.steps`; import it from there."""
