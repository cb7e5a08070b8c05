"""The objective that is the task's own loss."""

from pipeline.interfaces import Batch, StepSpec, TaskOutput
from pipeline.objectives.objective import OBJECTIVES, Model, Objective


@OBJECTIVES.register("supervised")
class Supervised(Objective):
    one_pass = True

    def __init__(self) -> None:
        """It has no options."""
        super().__init__()

    def forward(self, model: Model, batch: Batch, spec: StepSpec) -> TaskOutput:
        return model.predict(batch, reduction=spec.reduction, relaxed=spec.relaxed)
