"""What an engine promises, and what of it evaluation needs."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from pipeline.interfaces import Batch, Scores, StepSpec, Tallies, TaskOutput
from pipeline.merging.schedule import GridReduction, ReductionSpec
from pipeline.model import MultiTaskModel
from pipeline.modes import HasModes
from pipeline.ranks import Ranks

Reduction = ReductionSpec | GridReduction | None
"""None: the task's own."""


class Evaluated(HasModes, Protocol):
    """An nn.Module that counts and scores: one model, or many as one."""

    def to(self, device: torch.device, /) -> object: ...

    def evaluate(self, batch: Batch, *, reduction: Reduction = None) -> Tallies: ...

    def scores(self, task: str, tallies: Tallies, *, thorough: bool = False) -> Scores: ...


class Evaluator(Ranks, Protocol):
    """Ranks that hold a model each, and evaluate it."""

    forward_is_collective: bool
    """Whether all ranks must run equally many forwards (ZeRO 3)."""

    @property
    def module(self) -> Evaluated:
        """The bare model."""
        ...

    def evaluate(self, batch: Batch, *, reduction: Reduction = None) -> Tallies:
        """The model's tallies of a batch, under the precision of the run and without gradients. At ZeRO 3 a
        collective."""
        ...


class Engine(Evaluator, Protocol):
    """Carries out a step. `local` is one process of plain PyTorch; `zero` is DeepSpeed.

    A step whose gradient norm is not finite is skipped on all ranks: weights, moments and step counts stay as
    they are. A loss that is not finite makes it so. (Running statistics are the loop's business.) A parameter
    group whose lr is 0 rests in the same sense.
    """

    @property
    def module(self) -> MultiTaskModel: ...

    def forward(self, batch: Batch, spec: StepSpec) -> TaskOutput:
        """The model's output, under the engine's precision."""
        ...

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulates the gradients of a micro-batch; last: of the step's last one, behind which ranks
        exchange what they have not yet.

        Parameters that no micro-batch of the step uses have a gradient of 0.
        """
        ...

    def step(self, lrs: Mapping[str, float]) -> Tensor:
        """Behind the last micro-batch: clips, updates with `lrs` per parameter group, clears. The gradient's
        norm before clipping, a device scalar."""
        ...

    def state_tensors(self) -> dict[str, Tensor]:
        """Full fp32 parameters (`model.NAME`) and optimizer moments (`exp_avg.NAME`, `exp_avg_sq.NAME`,
        `step.NAME`), on the CPU, on rank 0 (other ranks may return an empty dict). A collective."""
        ...

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state_tensors`, at any world size and ZeRO stage. A collective; every rank gives
        all tensors."""
        ...
