"""Protocols of an engine, and of an evaluator, which evaluation needs."""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from pipeline.interfaces import Batch, Scores, StepSpec, Tallies, TaskOutput
from pipeline.merging.schedule import AnyReduction
from pipeline.model import MultiTaskModel
from pipeline.modes import HasModes
from pipeline.ranks import Ranks


class Evaluated(HasModes, Protocol):
    """An nn.Module with tallies and scores: one model, or many models as one."""

    def to(self, device: torch.device, /) -> object: ...

    def evaluate(self, batch: Batch, *, reduction: AnyReduction | None = None) -> Tallies: ...

    def scores(self, task: str, tallies: Tallies, *, thorough: bool = False) -> Scores: ...


class Evaluator(Ranks, Protocol):
    """Ranks with a model each, which they evaluate."""

    forward_is_collective: bool
    """Whether all ranks must run the same number of forward passes (ZeRO 3, FSDP2)."""

    @property
    def module(self) -> Evaluated:
        """The model, without wrappers."""
        ...

    def evaluate(self, batch: Batch, *, reduction: AnyReduction | None = None) -> Tallies:
        """The model's tallies of a batch, under the precision of the run and without gradients. Where
        `forward_is_collective`, a collective."""
        ...


class Engine(Evaluator, Protocol):
    """Carries out a step. `local` is one process of plain PyTorch; `zero` is DeepSpeed, and `fsdp`
    PyTorch's FSDP2.

    All ranks skip a step whose gradient norm is not finite, which a loss that is not finite causes: weights,
    moments and step counts stay as they are. So do those of a parameter group whose lr is 0. (The loop
    restores running statistics.)
    """

    @property
    def module(self) -> MultiTaskModel: ...

    def forward(self, batch: Batch, spec: StepSpec) -> TaskOutput:
        """The model's output, under the engine's precision."""
        ...

    def backward(self, loss: Tensor, *, last: bool, retain: bool = False) -> None:
        """Accumulates the gradients of a micro-batch. last: it is the step's last one, after which the ranks
        complete the exchange of gradients. retain: another backward pass through the same forward follows.

        Parameters that no micro-batch of the step uses have a gradient of 0.
        """
        ...

    def step(self, lrs: Mapping[str, float]) -> Tensor:
        """Clips the gradients, updates with `lrs` per parameter group, and clears, after the last
        micro-batch. Returns the gradient's norm before clipping, a scalar on the device."""
        ...

    def copied_state(self) -> Callable[[], dict[str, Tensor]]:
        """Copies the state to the CPU of rank 0. A collective. What it returns puts the copies together, and
        may be called in another thread: whole fp32 parameters (`model.NAME`) and the optimizer's state
        (`MOMENT.NAME`, such as `exp_avg.NAME`, and `step.NAME`); on other ranks maybe nothing."""
        ...

    def state_tensors(self) -> dict[str, Tensor]:
        """The same, put together. A collective."""
        ...

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Loads the result of `state_tensors`, of any world size and ZeRO stage. A collective, to which every
        rank passes all tensors; they may be mapped from a file, as a rank reads no more than it keeps, and
        rank 0 alone reads what all keep."""
        ...
