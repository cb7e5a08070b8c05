"""The blocks of LeMeViT: positions by a convolution, attention, and an MLP. Meta tokens and patches share its
norms and layers.

B batch, M meta tokens, which stand first, N patches, C channels.
"""

import torch
from timm.layers.drop import DropPath
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from pipeline.backbone.lemevit.attention import (
    CrossAttention,
    DualCrossAttention,
    MetaAttention,
    SelfAttention,
    numbers,
)
from pipeline.token_state import TokenState

ATTENTIONS: dict[str, type[MetaAttention]] = {
    "C": CrossAttention,
    "D": DualCrossAttention,
    "S": SelfAttention,
}
"""Kind of a stage -> the attention of its blocks."""


class MetaBlock(nn.Module):
    """A block whose meta tokens and patches both change: of kind D or S.

    layer_scale: where LayerScale starts; None: there is none. drop_path: stochastic depth, drawn for meta
    tokens and patches apart.
    """

    def __init__(
        self,
        kind: str,
        width: int,
        num_heads: int,
        num_meta: int,
        *,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
    ):
        super().__init__()
        self.width, self.num_meta = width, num_meta
        self.position = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = ATTENTIONS[kind](width, num_heads, num_meta)
        self.mlp = Mlp(width, int(mlp_ratio * width))
        self.ls1, self.ls2 = (
            nn.Identity() if layer_scale is None else LayerScale(width, layer_scale) for _ in range(2)
        )
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, state: TokenState) -> TokenState:
        """The state after the block, of the same shape."""
        tokens = self.positioned(state)
        tokens = tokens + self._kept(self.ls1(self.attn(self.norm1(tokens))))
        return state.with_tokens(tokens + self._kept(self.ls2(self.mlp(self.norm2(tokens)))))

    def positioned(self, state: TokenState) -> Tensor:
        """[B, M + N, C]: the tokens, whose patches know their neighbours by a depthwise convolution."""
        patches = state.patch_tokens
        grid = patches.mT.unflatten(2, state.grid)
        near = self.position(grid).flatten(2).mT
        return torch.cat([state.tokens[:, : self.num_meta], patches + near], dim=1)

    def macs(self, num_patches: int) -> int:
        """MACs for N patches."""
        return self.position.weight.numel() * num_patches + self._token_macs(num_patches)

    def _token_macs(self, num_patches: int) -> int:
        tokens = self.num_meta + num_patches
        return self.attn.macs(num_patches) + self._mlp_macs() * tokens

    def _mlp_macs(self) -> int:
        """MACs of the MLP for one token."""
        return sum(numbers(layer) for layer in self.mlp.modules() if isinstance(layer, nn.Linear))

    def _kept(self, update: Tensor) -> Tensor:
        """What is added to the tokens [B, M + N, C], without what stochastic depth drops."""
        if isinstance(self.drop_path, nn.Identity) or not self.training:
            return update
        sides = update.tensor_split([self.num_meta], dim=1)
        return torch.cat([self.drop_path(side) for side in sides], dim=1)


class CrossBlock(MetaBlock):
    """A block of kind C: meta tokens read the patches, which stay as they are."""

    def forward(self, state: TokenState) -> TokenState:
        meta = state.tokens[:, : self.num_meta]
        seen = self.norm1(self.positioned(state))
        meta = meta + self.drop_path(self.ls1(self.attn(seen)))
        meta = meta + self.drop_path(self.ls2(self.mlp(self.norm2(meta))))
        return state.with_tokens(torch.cat([meta, state.patch_tokens], dim=1))

    def _token_macs(self, num_patches: int) -> int:
        return self.attn.macs(num_patches) + self._mlp_macs() * self.num_meta


BLOCKS: dict[str, type[MetaBlock]] = {"C": CrossBlock, "D": MetaBlock, "S": MetaBlock}
"""Kind of a stage -> its blocks."""
