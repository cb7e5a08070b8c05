"""What a batch asks of a task, one dataclass of tensors per task."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ClassificationTargets:
    """labels: int64 [B] in [0, K), or float32 [B, K] whose rows sum to 1 after mixup or cutmix."""

    labels: Tensor
