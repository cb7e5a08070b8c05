"""What lies before and between the stages of LeMeViT: the stem, and the ways into a stage.

B batch, C channels, D channels of the stage before, h w the grid.
"""

import torch
from torch import Tensor, nn

from pipeline.token_state import TokenState


def stem(in_chans: int, width: int) -> nn.Sequential:
    """Images [B, in_chans, H, W] -> patches [B, C, H / 4, W / 4], by two convolutions."""
    half = width // 2
    return nn.Sequential(
        nn.Conv2d(in_chans, half, 3, stride=2, padding=1),
        nn.BatchNorm2d(half),
        nn.GELU(),
        nn.Conv2d(half, width, 3, stride=2, padding=1),
        nn.BatchNorm2d(width),
    )


def meta_mlp(before: int, width: int) -> nn.Sequential:
    """Meta tokens [B, M, D] -> [B, M, C]. Its middle is four times as wide as what enters."""
    return nn.Sequential(
        nn.Linear(before, 4 * before),
        nn.LayerNorm(4 * before),
        nn.GELU(),
        nn.Linear(4 * before, width),
        nn.LayerNorm(width),
    )


class StageEntry(nn.Module):
    """The way into a stage: a convolution that halves the grid, where `halves`, and an MLP for the meta
    tokens."""

    def __init__(self, before: int, width: int, *, halves: bool):
        super().__init__()
        self.image = (
            nn.Sequential(nn.Conv2d(before, width, 3, stride=2, padding=1), nn.BatchNorm2d(width))
            if halves
            else nn.Identity()
        )
        self.meta = meta_mlp(before, width)
        self.halves = halves

    def forward(self, state: TokenState) -> TokenState:
        """The state that the stage's first block reads, where each side of the grid divides by 2 if it is
        halved."""
        meta = self.meta(state.tokens[:, : state.num_prefix])
        if not self.halves:
            return state.with_tokens(torch.cat([meta, state.patch_tokens], dim=1))
        return state_of(meta, self.image(state.patch_tokens.mT.unflatten(2, state.grid)))

    def macs(self, num_patches: int, num_meta: int) -> int:
        """MACs where N patches leave."""
        of_meta = sum(layer.weight.numel() for layer in self.meta if isinstance(layer, nn.Linear))
        return of_meta * num_meta + (conv_macs(self.image, num_patches) if self.halves else 0)


def state_of(meta: Tensor, patches: Tensor) -> TokenState:
    """The state of meta tokens [B, M, C], which are its prefix, and patches [B, C, h, w]."""
    _, _, height, width = patches.shape
    tokens = torch.cat([meta, patches.flatten(2).mT], dim=1)
    return TokenState.start(tokens, (height, width), meta.shape[1])


def conv_macs(part: nn.Module, *num_patches: int) -> int:
    """MACs of the convolutions of a part, in order. num_patches: what leaves each."""
    convs = [layer for layer in part.modules() if isinstance(layer, nn.Conv2d)]
    return sum(conv.weight.numel() * number for conv, number in zip(convs, num_patches, strict=True))
