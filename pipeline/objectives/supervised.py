"""The task's own loss."""

from typing import Any

from torch import nn

from pipeline.interfaces import Batch, StepSpec, TaskOutput
from pipeline.objectives.registry import OBJECTIVES


@OBJECTIVES.register("supervised")
class Supervised(nn.Module):
    def __init__(self) -> None:
        """No options."""
        super().__init__()

    def forward(self, model: Any, batch: Batch, spec: StepSpec) -> TaskOutput:
        return model.predict(batch, reduction=spec.reduction, relaxed=spec.relaxed)
