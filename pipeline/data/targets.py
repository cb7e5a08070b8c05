"""What a batch asks of a task, one dataclass of tensors per task."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ClassificationTargets:
    """labels: int64 [B] in [0, K), or float32 [B, K] whose rows sum to 1 after mixup or cutmix."""

    labels: Tensor


@dataclass(frozen=True)
class MaskTargets:
    """mask: uint8 [B, H, W], the class of each pixel in [0, K), or 255 where it is ignored."""

    mask: Tensor
