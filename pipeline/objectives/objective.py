"""What an objective is, and what it asks of the model."""

from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from pipeline.backbone.vit import MergingViT
from pipeline.interfaces import Batch, StepSpec, Task, TaskOutput
from pipeline.merging.schedule import ReductionSpec
from pipeline.modes import HasModes
from pipeline.parts import ModulesOfTasks
from pipeline.registry import Registry
from pipeline.token_state import BackboneOutput


class Model(HasModes, Protocol):
    """`pipeline.model.MultiTaskModel`, which says what the methods do, as objectives see it."""

    @property
    def backbone(self) -> MergingViT: ...

    @property
    def tasks(self) -> ModulesOfTasks[Task]: ...

    def predict(
        self, batch: Batch, *, reduction: ReductionSpec | None = None, relaxed: bool | None = None
    ) -> TaskOutput: ...

    def encode(
        self, task: str, images: Tensor, *, reduction: ReductionSpec | None = None, **options: Any
    ) -> BackboneOutput: ...

    def schedule(
        self, task: str, grid: tuple[int, int], reduction: ReductionSpec | None = None
    ) -> tuple[int, ...]: ...


class Objective(nn.Module):
    """Turns a batch into a loss. What it learns itself is of the kind that its `part_kind` says."""

    def forward(self, model: Model, batch: Batch, spec: StepSpec) -> TaskOutput:
        raise NotImplementedError

    if TYPE_CHECKING:

        def __call__(self, model: Model, batch: Batch, spec: StepSpec) -> TaskOutput: ...


OBJECTIVES: Registry[Objective] = Registry("objective")
"""Filled by `pipeline.objectives`; import it from there."""
