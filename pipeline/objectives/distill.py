"""Agreement with the same model unmerged: needs no labels, and says what merging alone cost."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, TaskOutput
from pipeline.modes import evaluation_mode
from pipeline.objectives import OBJECTIVES


@OBJECTIVES.register("distill")
class Distill(nn.Module):
    """weight * disagreement with the teacher + (1 - weight) * the task's own loss.

    The teacher is the model itself at reduction 0, in evaluation mode and without gradient: in modular
    training that is the fixed, unmerged backbone.
    """

    def __init__(self, *, weight: float = 1.0, temperature: float = 1.0):
        super().__init__()
        if not 0 < weight <= 1 or temperature <= 0:
            raise ConfigError(
                f"distill: weight {weight} must be in (0, 1] and temperature {temperature} above 0"
            )
        self.weight, self.temperature = weight, temperature

    def forward(self, model: Any, batch: Batch, *, draw: float = 0.0, **options: Any) -> TaskOutput:
        with torch.no_grad(), evaluation_mode(model):
            teacher = model.predict(batch, reduction=0, relaxed=False)
        student = model.predict(batch, **options)
        gap = model.tasks[batch.task].distill(student, teacher, self.temperature)
        count = len(batch.images)
        logs = {**student.logs, "distill": (gap.detach() * count, count)}
        return replace(student, loss=self.weight * gap + (1 - self.weight) * student.loss, logs=logs)
