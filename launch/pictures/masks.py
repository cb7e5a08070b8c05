"""Pictures of segmentations: classes as colours over the image."""

from collections.abc import Sequence

import numpy as np
import torch

from launch.pictures.merged_groups import reduction_text
from launch.pictures.page import Panel
from pipeline.interfaces import Batch
from pipeline.merging.schedule import ReductionSpec
from pipeline.model import MultiTaskModel
from tasks.masks.windows import segment
from tasks.segmentation import SegmentationTask

OPACITY = 0.6


def class_colours(count: int) -> np.ndarray:
    """[count, 3] uint8, different for up to 255 classes, and the same in every run.

    The bits of the class's number plus one, the lowest first, go to red, green and blue in turn, there the
    highest first (the colours of the PASCAL VOC classes, whose black background is left out).
    """
    numbers = np.arange(1, count + 1)[:, None]
    channels = np.arange(3)[None]
    return np.sum([((numbers >> (3 * bit + channels)) & 1) << (7 - bit) for bit in range(3)], axis=0).astype(
        np.uint8
    )


def paint_classes(picture: np.ndarray, labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """The picture [H, W, 3] uint8, blended with the colours [K, 3] of its labels [h, w], which may have
    another size. Pixels of other labels stay as they are."""
    (height, width), (rows, columns) = picture.shape[:2], labels.shape
    labels = labels[np.arange(height) * rows // height][:, np.arange(width) * columns // width]
    known = labels < len(colours)
    painted = picture.copy()
    painted[known] = (OPACITY * colours[labels[known]] + (1 - OPACITY) * picture[known]).round()
    return painted


@torch.no_grad()
def draw_segmentation(
    model: MultiTaskModel, batch: Batch, picture: np.ndarray, reductions: Sequence[ReductionSpec | None]
) -> tuple[list[Panel], set[int]]:
    """Panels of the reference and the predictions of a batch of one image, unmerged and for each reduction;
    and the classes in them."""
    task, mask = model.tasks[batch.task], batch.targets.mask
    assert isinstance(task, SegmentationTask)
    size, colours = (mask.shape[1], mask.shape[2]), class_colours(task.num_classes)
    named = {"reference": mask[0]}
    for reduction in (0, *(spec for spec in reductions if spec != 0)):
        (pixels,) = segment(
            model.encoder(batch.task, reduction),
            task.logits,
            batch.images,
            size,
            task.inference,
            task.patch_size,
        )
        named[f"prediction, {reduction_text(reduction)}"] = pixels.argmax(dim=0)
    labels = {caption: values.cpu().numpy() for caption, values in named.items()}
    present = {
        int(label) for values in labels.values() for label in np.unique(values) if label < task.num_classes
    }
    return [
        Panel(paint_classes(picture, values, colours), caption) for caption, values in labels.items()
    ], present
