"""Metrics of classes of which an image has any number. N samples, K classes."""

import torch
from torch import Tensor

from pipeline.interfaces import Scores


def average_precision(scores: Tensor, present: Tensor) -> float | None:
    """The sum over the thresholds, from the highest score down, of the precision there times the growth of
    the recall. Samples of one score share a threshold, so their order does not count.

    scores: [N]. present: bool [N], which samples have the class. None where no sample has it.
    """
    total = int(present.sum())
    if not total:
        return None
    ranked = scores.double().sort(descending=True)
    hits = present[ranked.indices].double().cumsum(0)
    last = torch.cat([ranked.values[1:] != ranked.values[:-1], torch.tensor([True])])
    at = last.nonzero()[:, 0]
    precision = hits[at] / (at + 1)
    gained = torch.diff(hits[at], prepend=torch.zeros(1, dtype=torch.float64)) / total
    return float((precision * gained).sum())


def count_predicted(predicted: Tensor, present: Tensor) -> Tensor:
    """int64 [3, K]: samples of which a class is rightly predicted, wrongly predicted, and missed. Both bool
    [N, K]."""
    counts = (predicted & present, predicted & ~present, ~predicted & present)
    return torch.stack([each.sum(0) for each in counts])


def scores_of(logits: Tensor, present: Tensor, counts: Tensor) -> Scores:
    """mAP, F1_micro (of all decisions together), F1_macro (mean over classes), and AP/i and F1/i of each
    class i, all in [0, 1].

    logits: [N, K]. present: bool [N, K]. counts: see `count_predicted`. None: the average precision of a
    class that no sample has, and the F1 of one that is not predicted either. Means are over the other
    classes.
    """
    pairs = zip(logits.unbind(1), present.unbind(1), strict=True)
    precision = [average_precision(own, there) for own, there in pairs]
    right, wrong, missed = counts.double().unbind()
    f1 = [_ratio(2 * hit, 2 * hit + other) for hit, other in zip(right, wrong + missed, strict=True)]
    micro = _ratio(2 * right.sum(), 2 * right.sum() + (wrong + missed).sum())
    means = {"mAP": _mean(precision), "F1_micro": micro, "F1_macro": _mean(f1)}
    classes = {"AP": precision, "F1": f1}
    return means | {f"{name}/{i}": value for name, own in classes.items() for i, value in enumerate(own)}


def _ratio(part: Tensor, whole: Tensor) -> float | None:
    return float(part / whole) if whole else None


def _mean(values: list[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
