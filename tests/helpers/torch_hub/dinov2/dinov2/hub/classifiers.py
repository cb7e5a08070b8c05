"""A classifier around a backbone, as DINOv2's `_lc` models are, in our own words."""

import torch
from dinov2.models.vision_transformer import dinov2_tiny
from torch import nn


class _LinearClassifierWrapper(nn.Module):
    def __init__(self, *, backbone, linear_head, layers=4):
        super().__init__()
        self.backbone, self.linear_head, self.layers = backbone, linear_head, layers

    def forward(self, x):
        if self.layers == 1:
            found = self.backbone.forward_features(x)
            first, patches = [found["x_norm_clstoken"]], found["x_norm_patchtokens"]
        else:
            found = self.backbone.get_intermediate_layers(x, n=self.layers, return_class_token=True)
            first, patches = [one for _, one in found], found[-1][0]
        return self.linear_head(torch.cat([*first, patches.mean(dim=1)], dim=1))


def dinov2_tiny_lc(layers=4, **options):
    backbone = dinov2_tiny(**options)
    head = nn.Linear((1 + layers) * backbone.embed_dim, 7)
    return _LinearClassifierWrapper(backbone=backbone, linear_head=head, layers=layers)
