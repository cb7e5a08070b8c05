"""Weights of classes in a loss."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.errors import ConfigError

MAX_WEIGHT = 1e6


def class_weights(task: str, weights: Sequence[float] | None, num_classes: int) -> Tensor | None:
    """float32 [K]; None for none. Raises ConfigError unless there is one weight for each class, 0 or more,
    and not all 0."""
    if weights is None:
        return None
    if len(weights) != num_classes:
        raise ConfigError(
            f"{task}: class_weight has {len(weights)} numbers and num_classes is {num_classes}; give one for "
            "each class"
        )
    fit = all(math.isfinite(weight) and 0 <= weight <= MAX_WEIGHT for weight in weights)
    if not fit or not any(weights):
        raise ConfigError(
            f"{task}: class_weight is {list(weights)!r:.200}; give numbers from 0 to {MAX_WEIGHT:.0f}, not "
            "all 0"
        )
    return torch.tensor(weights, dtype=torch.float32)
