"""Base class of objectives, and the protocol of the model that they use."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from pipeline.backbone.backbone import Backbone
from pipeline.interfaces import Batch, StepSpec, Task, TaskOutput
from pipeline.merging.schedule import ReductionSpec
from pipeline.modes import HasModes
from pipeline.parts import ModulesOfTasks
from pipeline.registry import Registry
from pipeline.token_state import BackboneOutput, Grid


class Model(HasModes, Protocol):
    """The methods of `pipeline.model.MultiTaskModel` that objectives use; they are described there."""

    @property
    def backbone(self) -> Backbone: ...

    @property
    def tasks(self) -> ModulesOfTasks[Task]: ...

    def predict(
        self, batch: Batch, *, reduction: ReductionSpec | None = None, relaxed: bool | None = None
    ) -> TaskOutput: ...

    def encode(
        self, task: str, images: Tensor, *, reduction: ReductionSpec | None = None, **options: Any
    ) -> BackboneOutput: ...

    def encode_batch(
        self, batch: Batch, *, reduction: ReductionSpec | None = None, **options: Any
    ) -> BackboneOutput: ...

    def schedule(self, task: str, grid: Grid, reduction: ReductionSpec | None = None) -> tuple[int, ...]: ...


class Objective(nn.Module):
    """Computes the loss of a batch. Its `part_kind` is the kind of its own parameters."""

    one_pass = False
    """Whether the loss is that of one pass, which does not compare what several say of the same images."""

    def prepare(self, backbone: Backbone, tasks: Sequence[Task]) -> None:
        """Builds what it learns itself, if anything, for a model of this backbone and these tasks."""

    def refuses(self, task: Task) -> str | None:
        """Why the loss of a task cannot be computed; None where it can."""
        return None

    def losses(self, task: Task, trains: frozenset[str]) -> tuple[str, ...]:
        """Names of the losses of a task in steps that train these kinds, `TaskOutput.parts`, the main one
        first. An objective that changes the loss says how by both."""
        return task.losses

    def forward(self, model: Model, batch: Batch, spec: StepSpec) -> TaskOutput:
        raise NotImplementedError

    if TYPE_CHECKING:

        def __call__(self, model: Model, batch: Batch, spec: StepSpec) -> TaskOutput: ...


OBJECTIVES: Registry[Objective] = Registry("objective")
"""Objectives by name. `pipeline.objectives` fills it; import it from there."""
