"""Consistency between two reductions of the same model (MCTF, Lee, Choi & Kim, CVPR 2024): what a model says
of an image should hardly depend on how much of it was merged."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, StepSpec, Task, TaskOutput
from pipeline.objectives.objective import OBJECTIVES, Model, Objective
from pipeline.ranks import mean_over_ranks
from pipeline.token_state import widened


@OBJECTIVES.register("consistency")
class Consistency(Objective):
    """The task's loss of two passes, plus `weight` times how far the features of their images are apart.

    The student merges with the step's reduction. The teacher is the same model, which learns as well, and
    merges less: by a share of the student's reduction that each step draws evenly from [0, `teacher`), the
    same on every rank. The distance is the mean square over channels, and over images of whose label the
    student's probability is above `confidence`; of mixed images that of all their labels. No gradient of it
    reaches the teacher's pass. Tasks with one class per image have what it takes; others are refused. Raises
    ConfigError.
    """

    def __init__(self, *, weight: float = 3.0, confidence: float = 0.4, teacher: float = 0.5):
        super().__init__()
        if not (0 < weight < math.inf and 0 <= confidence < 1 and 0 < teacher <= 1):
            raise ConfigError(
                f"consistency: weight {weight} must be above 0, confidence {confidence} in [0, 1) and "
                f"teacher {teacher} in (0, 1]"
            )
        self.weight, self.confidence, self.teacher = weight, confidence, teacher

    def refuses(self, task: Task) -> str | None:
        if task.has_one_class:
            return None
        return (
            f"objective 'consistency' reads the class of an image, and {type(task).__name__} has none; "
            "give objective.type='distill' or 'supervised'"
        )

    def losses(self, task: Task, trains: frozenset[str]) -> tuple[str, ...]:
        return (*task.losses, "teacher", "consistency")

    def forward(self, model: Model, batch: Batch, spec: StepSpec) -> TaskOutput:
        """spec.draw picks the teacher's reduction."""
        task = model.tasks[batch.task]
        if reason := self.refuses(task):
            raise ConfigError(f"tasks.{batch.task}: {reason}")
        schedule = model.schedule(batch.task, model.backbone.grid_of(batch.images), spec.reduction)
        student, features = _passed(model, batch, spec, schedule)
        teacher, wanted = _passed(model, batch, spec, share_of(schedule, self.teacher * spec.draw))
        sure = task.label_probability(student, batch) > self.confidence
        gap = distance(features, wanted.detach(), sure)
        count = len(batch.images)
        logs = {
            **student.logs,
            "teacher_loss": (teacher.loss.detach() * count, count),
            "consistency": (gap.detach() * count, count),
            "sure": (sure.sum().float(), count),
        }
        parts = {**student.losses, "teacher": teacher.loss, "consistency": self.weight * gap}
        return replace(student, loss=student.loss + teacher.loss + self.weight * gap, logs=logs, parts=parts)


def distance(features: Tensor, wanted: Tensor, counts: Tensor) -> Tensor:
    """The mean square of features [B, C] minus those that are wanted, over the channels, and over the images
    that count, [B] bool, on all ranks; 0 where none does. A scalar; with more than one rank the call is a
    collective."""
    gaps = (widened(features) - widened(wanted)).square().mean(dim=-1)
    return mean_over_ranks(torch.where(counts, gaps, 0.0).sum(), counts.sum())


def share_of(schedule: Sequence[int], share: float) -> list[int]:
    """r of each block that removes a share of what the schedule removes up to there, rounded down. No block
    removes more than in the schedule. share: in [0, 1]."""
    done = removed = 0
    found: list[int] = []
    for r in schedule:
        removed += r
        found.append(int(removed * share) - done)
        done += found[-1]
    return found


def _passed(model: Model, batch: Batch, spec: StepSpec, schedule: Sequence[int]) -> tuple[TaskOutput, Tensor]:
    """The task's output under r of each block, and the features [B, C] of its images."""
    task = model.tasks[batch.task]
    options = {"relaxed": spec.relaxed, "prefix_alone": task.reads_prefix_alone}
    encoded = model.encode_batch(batch, reduction=list(schedule), **options)
    return task(encoded, batch), task.image_features(encoded)
