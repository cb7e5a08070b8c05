"""The targets of a batch: one dataclass for each schema, of tensors and, where a metric needs it, text."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """What images were mixed of, where labels follow their tokens. labels: those of the images themselves, as
    they were before. partner: float32 [B, h, w], the part of each patch that is of the image at the mirrored
    place of the batch, 0 or 1."""

    labels: Tensor
    partner: Tensor


@dataclass(frozen=True)
class ClassificationTargets:
    """labels: int64 [B] in [0, K), or float32 [B, K] whose rows sum to 1 after mixup or cutmix. mixture: None
    where labels follow no tokens."""

    labels: Tensor
    mixture: Mixture | None = None


@dataclass(frozen=True)
class ClipTargets(ClassificationTargets):
    """The same, of clips."""


@dataclass(frozen=True)
class MultiLabelTargets:
    """labels: float32 [B, K], 1 for each class that an image has and 0 for the others; shares of them after
    mixup or cutmix. mixture: see `ClassificationTargets`."""

    labels: Tensor
    mixture: Mixture | None = None


@dataclass(frozen=True)
class MaskTargets:
    """mask: uint8 [B, H, W], the class of each pixel in [0, K), or 255 where it is ignored."""

    mask: Tensor


@dataclass(frozen=True)
class CaptionTargets:
    """tokens: int64 [B, L], a caption of each image from bos to eos, then pad; L is a multiple of 8, or the
    tokenizer's context_length."""

    tokens: Tensor
    references: tuple[tuple[str, ...], ...]
    """All captions of each image, the one of `tokens` first; in training none of any."""
