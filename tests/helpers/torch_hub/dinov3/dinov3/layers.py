"""Layers with the names and draws of DINOv3's, in our own words. B batch, N tokens, C channels, D channels of
a head."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class LinearKMaskedBias(nn.Linear):
    """Of queries, keys and values. Keys have no bias, whatever the parameter says."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        if self.bias is not None:
            no_key = torch.ones(3, self.out_features // 3).index_fill(0, torch.tensor([1]), 0.0)
            self.register_buffer("bias_mask", no_key.flatten())

    def forward(self, x):
        return F.linear(x, self.weight, None if self.bias is None else self.bias * self.bias_mask)


class SelfAttention(nn.Module):
    def __init__(self, dim, num_heads, qkv_bias, mask_k_bias):
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv = (LinearKMaskedBias if mask_k_bias else nn.Linear)(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop, self.proj, self.proj_drop = nn.Dropout(0.0), nn.Linear(dim, dim), nn.Dropout(0.0)

    def forward(self, x, rope=None):
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(_rotated(q, *rope), _rotated(k, *rope), v)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


def _rotated(x, sine, cosine):
    """x [B, H, N, D]; sine, cosine [patches, D]. Prefix tokens stay."""
    first, rest = x.split([x.shape[2] - len(sine), len(sine)], dim=2)
    left, right = rest.chunk(2, dim=-1)
    turned = rest * cosine + torch.cat([-right, left], dim=-1) * sine
    return torch.cat([first, turned], dim=2).type_as(x)


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class SwiGLUFFN(nn.Module):
    def __init__(self, dim, hidden, align_to=8):
        super().__init__()
        hidden = -(-int(hidden * 2 / 3) // align_to) * align_to
        self.w1, self.w2, self.w3 = nn.Linear(dim, hidden), nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class LayerScale(nn.Module):
    def __init__(self, dim, init_values):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init_values))

    def forward(self, x):
        return x * self.gamma


class SelfAttentionBlock(nn.Module):
    def __init__(
        self, dim, num_heads, ffn_ratio, qkv_bias, drop_path, norm, ffn_layer, init_values, mask_k_bias
    ):
        super().__init__()
        self.norm1, self.norm2 = norm(dim), norm(dim)
        self.attn = SelfAttention(dim, num_heads, qkv_bias, mask_k_bias)
        self.mlp = ffn_layer(dim, int(dim * ffn_ratio))
        self.ls1, self.ls2 = (LayerScale(dim, init_values) if init_values else nn.Identity() for _ in "12")
        self.sample_drop_ratio = drop_path

    def forward(self, x, rope=None):
        x = self._add(x, lambda own: self.ls1(self.attn(self.norm1(own), rope=rope)))
        return self._add(x, lambda own: self.ls2(self.mlp(self.norm2(own))))

    def _add(self, x, update):
        """In training some images are left out as a whole."""
        if not self.training or not self.sample_drop_ratio:
            return x + update(x)
        kept = max(int(len(x) * (1 - self.sample_drop_ratio)), 1)
        rows = torch.randperm(len(x))[:kept]
        return x.index_add(0, rows, update(x[rows]), alpha=len(x) / kept)


class RopePositionEmbedding(nn.Module):
    """Sines and cosines [h w, D] of the angles of a grid whose sides both go from -1 to 1. In training the
    whole grid is scaled by a random factor."""

    def __init__(self, dim, base, rescale_coords):
        super().__init__()
        self.shift_coords, self.jitter_coords, self.rescale_coords = None, None, rescale_coords
        self.register_buffer("periods", base ** (2 * torch.arange(dim // 4) / (dim // 2)))

    def forward(self, *, H, W):
        rows, columns = (2 * torch.arange(0.5, side) / side - 1 for side in (H, W))
        where = torch.cartesian_prod(rows, columns)
        if self.training and self.rescale_coords is not None:
            most = math.log(self.rescale_coords)
            where = where * torch.empty(1).uniform_(-most, most).exp()
        angles = (2 * math.pi * where[:, :, None] / self.periods).flatten(1).tile(2)
        return angles.sin(), angles.cos()


class PatchEmbed(nn.Module):
    def __init__(self, patch_size, dim):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size)

    def forward(self, x):
        return self.proj(x).movedim(1, -1)
