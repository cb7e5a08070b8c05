"""The door of this room: what a model makes of one sample, as panels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.members.masks import IGNORED
from pipeline.data.targets import CaptionTargets, ClassificationTargets, MaskTargets, MultiLabelTargets
from pipeline.drawing.answers import (
    Answers,
    Reductions,
    caption_answers,
    class_answers,
    mask_answers,
    several_answers,
)
from pipeline.drawing.groups import default_blocks, draw_groups, picture_of
from pipeline.drawing.panels import Drawing, Panel
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch
from pipeline.merging.schedule import ReductionSpec
from pipeline.model import MultiTaskModel


@torch.no_grad()
def draw_sample(
    model: MultiTaskModel,
    batch: Batch,
    *,
    reductions: Sequence[ReductionSpec | None] = (None,),
    blocks: Sequence[int] | None = None,
    classes: Sequence[str] = (),
) -> Drawing:
    """The image, the task's answers unmerged and at each reduction with what is true, and the merged groups.

    model: in evaluation mode. batch: of one image, as a stream gives it: uint8, with its normalisation. Where
    what is true is not known, its targets are `unknown_targets`. reductions: None is the task's own. blocks:
    counted from 1; None: three, spread over the depth; () leaves the groups out, and so does a clip. classes:
    names of the task's classes. Raises ConfigError.
    """
    picture = picture_of(batch.images[0])
    blocks = default_blocks(model.backbone.depth) if blocks is None else blocks
    moved = batch.to(next(model.parameters()).device)
    found = _answers(model, moved, picture, [0, *(own for own in reductions if own != 0)], classes)
    shown = blocks if batch.images.ndim == 4 else ()
    groups = draw_groups(model, batch.task, moved.images[0], picture, reductions, shown) if shown else []
    return Drawing(
        batch.keys[0] if batch.keys else "",
        Panel(picture, "image"),
        tuple(found.panels),
        tuple(groups),
        found.right,
        found.changed,
        found.present,
    )


def unknown_targets(reads: type, size: tuple[int, int], count: int = 1) -> Any:
    """The targets of images, `count` of them, of which nothing is known. reads: a task's `reads`. size:
    (height, width) in pixels that a mask of each is to have. Raises ConfigError for a dataclass that is none
    of ours."""
    if issubclass(reads, ClassificationTargets):
        return reads(torch.full((count,), -1))
    if reads is MultiLabelTargets:
        return MultiLabelTargets(torch.full((count, 1), -1.0))
    if reads is CaptionTargets:
        return CaptionTargets(torch.zeros((count, 1), dtype=torch.int64), ((),) * count)
    if reads is MaskTargets:
        return MaskTargets(torch.full((count, *size), IGNORED, dtype=torch.uint8))
    raise ConfigError(f"no image without its {reads.__name__} can be given to this task")


def _answers(
    model: MultiTaskModel,
    batch: Batch,
    picture: NDArray[np.uint8],
    reductions: Reductions,
    classes: Sequence[str],
) -> Answers:
    """Those of the task; none of a task whose targets are none of ours."""
    if isinstance(batch.targets, MaskTargets):
        return mask_answers(model, batch, picture, reductions, classes)
    if isinstance(batch.targets, CaptionTargets):
        return caption_answers(model, batch, reductions)
    if isinstance(batch.targets, ClassificationTargets):
        return class_answers(model, batch, reductions, classes)
    if isinstance(batch.targets, MultiLabelTargets):
        return several_answers(model, batch, reductions, classes)
    return Answers([])
