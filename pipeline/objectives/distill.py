"""Distillation from the same model without merging. It needs no labels, and measures the cost of merging
alone."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, LogProbs, StepSpec, Task, TaskOutput
from pipeline.modes import evaluation_mode
from pipeline.objectives.objective import OBJECTIVES, Model, Objective
from pipeline.ranks import mean_over_ranks


@OBJECTIVES.register("distill")
class Distill(Objective):
    """weight * disagreement with the teacher + (1 - weight) * the task's own loss.

    The teacher is the model itself at reduction 0, in evaluation mode and without gradient. In modular
    training it does not change. Raises ConfigError for a weight outside (0, 1] or a temperature of 0 or less.
    """

    def __init__(self, *, weight: float = 1.0, temperature: float = 1.0):
        super().__init__()
        if not 0 < weight <= 1 or temperature <= 0:
            raise ConfigError(
                f"distill: weight {weight} must be in (0, 1] and temperature {temperature} above 0"
            )
        self.weight, self.temperature = weight, temperature

    def losses(self, task: Task, trains: frozenset[str]) -> tuple[str, ...]:
        return ("distill",) if self.weight == 1 else (*task.losses, "distill")

    def forward(self, model: Model, batch: Batch, spec: StepSpec) -> TaskOutput:
        with torch.no_grad(), evaluation_mode(model):
            teacher = model.predict(batch, reduction=0, relaxed=False)
        student = model.predict(batch, reduction=spec.reduction, relaxed=spec.relaxed)
        log_probs = model.tasks[batch.task].log_probs
        gap = divergence(log_probs(student, batch), log_probs(teacher, batch), self.temperature)
        count = len(batch.images)
        logs = {**student.logs, "distill": (gap.detach() * count, count)}
        rest = 1 - self.weight
        own = {name: rest * part for name, part in student.losses.items()} if rest else {}
        parts = own | {"distill": self.weight * gap}
        return replace(student, loss=self.weight * gap + rest * student.loss, logs=logs, parts=parts)


def divergence(student: LogProbs, teacher: LogProbs, temperature: float = 1.0) -> Tensor:
    """KL divergence of the student's distributions from the teacher's, of one batch, at a temperature and
    times its square (Hinton et al., 2015). A scalar: the mean over the distributions that count.

    Where only some count, the mean is over all ranks, and with more than one rank the call is a collective.
    """
    found = gaps(student, teacher, temperature)
    if student.counts is None:
        return found.mean()
    return mean_over_ranks(torch.where(student.counts, found, 0.0).sum(), student.counts.sum())


def gaps(student: LogProbs, teacher: LogProbs, temperature: float = 1.0) -> Tensor:
    """[...]: the divergence of each of the student's distributions [..., K] from the teacher's, in nats, see
    `divergence`; also of those that do not count."""
    given, wanted = (_tempered(each.values, temperature) for each in (student, teacher))
    return F.kl_div(given, wanted, log_target=True, reduction="none").sum(dim=-1) * temperature**2


def _tempered(log_probs: Tensor, temperature: float) -> Tensor:
    """Log-probabilities [..., K] of softmax(logits / temperature)."""
    return log_probs if temperature == 1 else F.log_softmax(log_probs / temperature, dim=-1)
