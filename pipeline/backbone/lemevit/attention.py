"""The three attentions of LeMeViT, between meta tokens c and patches x.

All take the tokens [B, M + N, C], the M meta tokens first, behind a norm, and give what is added to them. B
batch, M meta tokens, N patches, C channels, H heads.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import ConfigError


class MetaAttention(nn.Module):
    """What the three have in common."""

    def __init__(self, width: int, num_heads: int, num_meta: int):
        super().__init__()
        self.width, self.num_heads, self.num_meta = width, num_heads, num_meta

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, M + N, C] -> what is added to the tokens, or to the meta tokens alone."""
        raise NotImplementedError

    def macs(self, num_patches: int) -> int:
        """MACs for N patches: linear layers, and both products of attention."""
        raise NotImplementedError

    def _parts(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Meta tokens [B, M, C] and patches [B, N, C]."""
        return tokens[:, : self.num_meta], tokens[:, self.num_meta :]

    def _heads(self, values: Tensor, parts: int) -> tuple[Tensor, ...]:
        """[B, L, parts * C] -> `parts` tensors [B, H, L, C / H]."""
        return values.unflatten(2, (parts, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def _products(self, queries: int, keys: int) -> int:
        """MACs of both products of attention."""
        return 2 * queries * keys * self.width


class CrossAttention(MetaAttention):
    """Meta tokens ask patches: softmax(q_c k_x^T) v_x."""

    def __init__(self, width: int, num_heads: int, num_meta: int):
        super().__init__(width, num_heads, num_meta)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, M + N, C] -> [B, M, C], of the meta tokens."""
        meta, patches = self._parts(tokens)
        (q,), (k, v) = self._heads(self.q(meta), 1), self._heads(self.kv(patches), 2)
        return self.proj(_joined(F.scaled_dot_product_attention(q, k, v)))

    def macs(self, num_patches: int) -> int:
        linear = (numbers(self.q) + numbers(self.proj)) * self.num_meta + numbers(self.kv) * num_patches
        return linear + self._products(self.num_meta, num_patches)


class DualCrossAttention(MetaAttention):
    """Patches ask meta tokens while these ask patches, each side with layers of its own:
    softmax(s_x q_x k_c^T) v_c and softmax(s_c q_c k_x^T) v_x. Its cost grows with N, not with its square.

    s_c = C^-1/2 by all channels, not those of a head. s_x = log_N(M) C^-1/2: a patch has M keys to choose
    from where a meta token has N, and the factor keeps its choice as sharp. N is that of the input.
    """

    def __init__(self, width: int, num_heads: int, num_meta: int):
        super().__init__(width, num_heads, num_meta)
        self.qkv_x, self.qkv_c = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)
        self.proj_x, self.proj_c = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, M + N, C] -> [B, M + N, C]. Raises ConfigError for one patch, of which there is no
        logarithm."""
        meta, patches = self._parts(tokens)
        of_patches = scale_of_patches(patches.shape[1], self.num_meta) * self.width**-0.5
        q_x, k_x, v_x = self._heads(self.qkv_x(patches), 3)
        q_c, k_c, v_c = self._heads(self.qkv_c(meta), 3)
        asked = F.scaled_dot_product_attention(q_x, k_c, v_c, scale=of_patches)
        answered = F.scaled_dot_product_attention(q_c, k_x, v_x, scale=self.width**-0.5)
        return torch.cat([self.proj_c(_joined(answered)), self.proj_x(_joined(asked))], dim=1)

    def macs(self, num_patches: int) -> int:
        of_patches = (numbers(self.qkv_x) + numbers(self.proj_x)) * num_patches
        of_meta = (numbers(self.qkv_c) + numbers(self.proj_c)) * self.num_meta
        return of_patches + of_meta + 2 * self._products(num_patches, self.num_meta)


class SelfAttention(MetaAttention):
    """Patches ask patches and meta tokens ask meta tokens, by the same layers."""

    def __init__(self, width: int, num_heads: int, num_meta: int):
        super().__init__(width, num_heads, num_meta)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, M + N, C] -> [B, M + N, C]"""
        sides = (self._heads(side, 3) for side in self._parts(self.qkv(tokens)))
        mixed = [_joined(F.scaled_dot_product_attention(q, k, v)) for q, k, v in sides]
        return self.proj(torch.cat(mixed, dim=1))

    def macs(self, num_patches: int) -> int:
        linear = (numbers(self.qkv) + numbers(self.proj)) * (self.num_meta + num_patches)
        sides = (self.num_meta, num_patches)
        return linear + sum(self._products(number, number) for number in sides)


def scale_of_patches(num_patches: int, num_meta: int) -> float:
    """log_N(M): the factor by which the logits of patches that ask M meta tokens are softer than those of
    meta tokens that ask N patches. Raises ConfigError for N = 1."""
    if num_patches < 2:
        raise ConfigError(
            "a stage of dual cross-attention (D) gets one patch, and the scale of its queries is a logarithm "
            "to the base of their number; give larger images, or the stage another kind (backbone.options "
            "kinds)"
        )
    return math.log(num_meta, num_patches)


def numbers(layer: nn.Linear) -> int:
    """Numbers of a linear layer's weight: its MACs for one token."""
    return layer.weight.numel()


def _joined(mixed: Tensor) -> Tensor:
    """[B, H, L, C / H] -> [B, L, C]"""
    return mixed.transpose(1, 2).flatten(2)
