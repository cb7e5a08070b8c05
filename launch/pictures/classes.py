"""Classes in a page: what an image is, and what a model takes it for as tokens merge."""

from collections.abc import Sequence

import torch

from launch.pictures.merged_groups import reduction_text
from launch.pictures.page import Panel
from pipeline.interfaces import Batch
from pipeline.merging.schedule import ReductionSpec
from pipeline.model import MultiTaskModel


@torch.no_grad()
def write_classes(
    model: MultiTaskModel, batch: Batch, reductions: Sequence[ReductionSpec | None], classes: Sequence[str]
) -> Panel:
    """The class of a batch of one image, and the predicted ones with their probabilities, unmerged and for
    each reduction (None: the task's own). classes: their names."""
    task = model.tasks[batch.task]
    lines = [f"right: {_name(int(batch.targets.labels[0]), classes)}"]
    for reduction in (0, *(spec for spec in reductions if spec != 0)):
        shares = task.infer(model.encoder(batch.task, reduction), batch)[0].softmax(-1)
        share, label = shares.max(-1)
        lines.append(f"{reduction_text(reduction)}: {_name(int(label), classes)} {100 * float(share):.0f} %")
    return Panel(lines, "class")


def _name(label: int, classes: Sequence[str]) -> str:
    return classes[label] if label < len(classes) else str(label)
