"""A classifier around a backbone, as DINOv3's `_lc` model is, in our own words."""

import torch
from dinov3.models.vision_transformer import dinov3_tiny
from torch import nn


class _LinearClassifierWrapper(nn.Module):
    def __init__(self, *, backbone, linear_head):
        super().__init__()
        self.backbone, self.linear_head = backbone, linear_head

    def forward(self, x):
        found = self.backbone.forward_features(x)
        pooled = found["x_norm_patchtokens"].mean(dim=1)
        return self.linear_head(torch.cat([found["x_norm_clstoken"], pooled], dim=1))


def dinov3_tiny_lc(**options):
    backbone = dinov3_tiny(**options)
    return _LinearClassifierWrapper(backbone=backbone, linear_head=nn.Linear(2 * backbone.embed_dim, 7))
