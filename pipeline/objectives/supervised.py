"""The task's own loss."""

from pipeline.interfaces import Batch, StepSpec, TaskOutput
from pipeline.objectives.objective import OBJECTIVES, Model, Objective


@OBJECTIVES.register("supervised")
class Supervised(Objective):
    def __init__(self) -> None:
        """No options."""
        super().__init__()

    def forward(self, model: Model, batch: Batch, spec: StepSpec) -> TaskOutput:
        return model.predict(batch, reduction=spec.reduction, relaxed=spec.relaxed)
