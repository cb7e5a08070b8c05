"""Captions in a page: what people wrote of an image, and what a model writes as tokens merge."""

from collections.abc import Sequence

import torch

from launch.pictures.merged_groups import reduction_text
from launch.pictures.page import Panel
from pipeline.interfaces import Batch
from pipeline.merging.schedule import ReductionSpec
from pipeline.model import MultiTaskModel


@torch.no_grad()
def write_captions(
    model: MultiTaskModel, batch: Batch, reductions: Sequence[ReductionSpec | None]
) -> list[Panel]:
    """References and generated captions of a batch of one image, unmerged and for each reduction (None: the
    model's own)."""
    task = model.tasks[batch.task]
    panels = [Panel(batch.targets.references[0], "references")]
    for reduction in (0, *(spec for spec in reductions if spec != 0)):
        made = task.infer(model.encoder(batch.task, reduction), batch)
        panels.append(Panel(made, f"caption, {reduction_text(reduction)}"))
    return panels
