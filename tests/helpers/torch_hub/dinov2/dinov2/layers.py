"""Layers with the names and draws of DINOv2's, in our own words. B batch, N tokens, C channels, H heads."""

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.attn_drop, self.proj_drop = 0.0, nn.Dropout(0.0)

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


class MemEffAttention(Attention):
    pass


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class SwiGLUFFNFused(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        hidden = -(-int(hidden * 2 / 3) // 8) * 8
        self.w12, self.w3 = nn.Linear(dim, 2 * hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class LayerScale(nn.Module):
    def __init__(self, dim, init_values):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init_values))

    def forward(self, x):
        return x * self.gamma


class DropPath(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if not self.training:
            return x
        kept = x.new_empty(len(x), 1, 1).bernoulli_(1 - self.rate)
        return x * (kept / (1 - self.rate))


class Block(nn.Module):
    def __init__(self, dim, num_heads, mlp_ratio, drop_path, init_values, ffn_layer, attn_class=Attention):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = attn_class(dim, num_heads), ffn_layer(dim, int(dim * mlp_ratio))
        self.ls1, self.ls2 = (LayerScale(dim, init_values) if init_values else nn.Identity() for _ in "12")
        self.drop_path1, self.drop_path2 = (DropPath(drop_path) if drop_path else nn.Identity() for _ in "12")
        self.sample_drop_ratio = drop_path

    def forward(self, x):
        x = self._add(x, lambda own: self.ls1(self.attn(self.norm1(own))))
        return self._add(x, lambda own: self.ls2(self.mlp(self.norm2(own))))

    def _add(self, x, update):
        """Rates above 0.1 leave images out as a whole, and the second half too draws by drop_path1."""
        if not self.training or not self.sample_drop_ratio:
            return x + update(x)
        if self.sample_drop_ratio <= 0.1:
            return x + self.drop_path1(update(x))
        kept = max(int(len(x) * (1 - self.sample_drop_ratio)), 1)
        rows = torch.randperm(len(x))[:kept]
        return x.index_add(0, rows, update(x[rows]), alpha=len(x) / kept)


class NestedTensorBlock(Block):
    pass


class PatchEmbed(nn.Module):
    def __init__(self, patch_size, dim):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size)

    def forward(self, x):
        return self.proj(x).flatten(2).mT
