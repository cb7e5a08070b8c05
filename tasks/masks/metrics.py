"""The metrics of semantic segmentation, which are MMSegmentation's. K classes."""

import torch
from torch import Tensor

from pipeline.interfaces import Scores


def confusion(predicted: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    """[K, K] int64: number of pixels by (label, prediction).

    predicted, mask: [...] of one shape. Labels from K on (255) do not count. Needs no wait for the device;
    `bincount` would.
    """
    labels = mask.long()
    cell = torch.where(labels < num_classes, labels * num_classes + predicted, num_classes**2).flatten()
    counts = torch.zeros(num_classes**2 + 1, dtype=torch.int64, device=cell.device)
    return counts.index_add_(0, cell, torch.ones_like(cell))[:-1].view(num_classes, num_classes)


def scores_of(confusion: Tensor) -> Scores:
    """aAcc, mAcc, mIoU, and IoU/i and Acc/i of each class i, in [0, 1]. confusion: [K, K], see `confusion`.

    None: the accuracy of a class that no pixel has, and the IoU of one that is not predicted either. Means
    are over the other classes.
    """
    table = confusion.double().cpu()
    hits, labelled, predicted = table.diag(), table.sum(dim=1), table.sum(dim=0)
    iou = _ratios(hits, labelled + predicted - hits)
    acc = _ratios(hits, labelled)
    (all_acc,) = _ratios(hits.sum()[None], labelled.sum()[None])
    means = {"aAcc": all_acc, "mAcc": _mean(acc), "mIoU": _mean(iou)}
    return (
        means
        | {f"IoU/{i}": value for i, value in enumerate(iou)}
        | {f"Acc/{i}": value for i, value in enumerate(acc)}
    )


def _ratios(parts: Tensor, wholes: Tensor) -> list[float | None]:
    return [
        part / whole if whole else None for part, whole in zip(parts.tolist(), wholes.tolist(), strict=True)
    ]


def _mean(values: list[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
