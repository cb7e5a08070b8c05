"""Cutmix of whole patches: timm's draws, with rectangles that end between patches. So each patch is of one
image, and labels can follow the tokens (`pipeline.backbone.partner`). B images, grid (h, w) of patches, K
classes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.data.mixup import Mixup, cutmix_bbox_and_lam, mixup_target
from torch import Tensor

from pipeline.data.targets import Mixture

Box = tuple[slice, slice]
"""Rows and columns of a grid of patches."""


def mixed_labels(labels: Tensor, partner: Tensor, num_classes: int) -> Tensor:
    """float [B, K]: labels int64 [B] or float32 [B, K], mixed with those at the mirrored place of the batch.
    partner [B]: the share of the latter."""
    lam: Any = (1 - partner)[:, None]
    return mixup_target(labels, num_classes, lam, smoothing=0.0, multi_label=labels.ndim == 2)


class PatchCutmix:
    """Cutmix of images [B, 3, H, W] with those at the mirrored place of their batch.

    draws: timm's mixup of the settings, whose rectangles are rounded to whole patches; the labels are shares
    of their true area. patch: its (height, width) in pixels, which divide those of images. for_tokens:
    targets say of what images were mixed, so that labels can follow the tokens.
    """

    def __init__(self, draws: Mixup, patch: tuple[int, int], *, for_tokens: bool):
        self._draws, self._patch, self._for_tokens = draws, patch, for_tokens

    def __call__(self, images: Tensor, targets: Any) -> tuple[Tensor, Any]:
        """Mixed images, and targets with float labels [B, K]. Draws by numpy's generator, as timm does, and
        asks the device nothing."""
        parts = self._parts(images)
        height, width = self._patch
        of_partner = parts[:, :, None, :, None].expand(-1, -1, height, -1, width).reshape(images[:, :1].shape)
        mixed = torch.where(of_partner > 0, images.flip(0), images)
        labels = mixed_labels(targets.labels, parts.mean(dim=(1, 2)), self._draws.num_classes)
        mixture = Mixture(targets.labels, parts) if self._for_tokens else None
        return mixed, replace(targets, labels=labels, mixture=mixture)

    def _parts(self, images: Tensor) -> Tensor:
        """float32 [B, h, w]: 1 where a patch is to be the partner's, else 0."""
        batch, _, height, width = images.shape
        grid = height // self._patch[0], width // self._patch[1]
        parts = torch.zeros(batch, *grid, device=images.device)
        every = self._draws.mode == "batch"
        places = [slice(None)] if every else range(batch)
        for place, (rows, columns) in zip(places, self._boxes((height, width), batch), strict=True):
            parts[place, rows, columns].fill_(1)
        return parts

    def _boxes(self, size: tuple[int, int], batch: int) -> Sequence[Box]:
        """The box of the batch, or that of each image, by timm's draws in timm's order."""
        mode = self._draws.mode
        if mode == "batch":
            share, _ = self._draws._params_per_batch()
            return [self._box(size, share)]
        shares: Any = self._draws._params_per_elem(batch if mode == "elem" else batch // 2)[0]
        boxes = [self._box(size, share) for share in shares]
        return boxes if mode == "elem" else [*boxes, *reversed(boxes)]

    def _box(self, size: tuple[int, int], share: float) -> Box:
        """share: what an image keeps, as it was drawn."""
        if share == 1:
            return slice(0, 0), slice(0, 0)
        corners, _ = cutmix_bbox_and_lam(size, share, ratio_minmax=self._draws.cutmix_minmax)
        top, bottom, left, right = (int(edge) for edge in corners)
        height, width = self._patch
        rows = slice(round(top / height), round(bottom / height))
        return rows, slice(round(left / width), round(right / width))
