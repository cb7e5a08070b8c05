"""Semantic tokens by cross-attention, and the way back by it (see `pipeline.merging.policies.stvit`).

B batch, N patches, K semantic tokens, C channels, T tokens that are attended to, H heads.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.merging.apply import apply
from pipeline.merging.regions import Geometry, tables
from pipeline.merging.unmerge import carry_residual, unmerge_tokens
from pipeline.parts import METRIC
from pipeline.token_state import Assignment, Carried, TokenState, rows_of, widened

MLP_RATIO = 4


class CrossBlock(nn.Module):
    """A block in which tokens attend to others: one norm for both, a residual connection, an MLP, and a
    factor for each channel of both branches. scale: where these start."""

    def __init__(self, dim: int, heads: int, scale: float):
        super().__init__()
        self.heads = math.gcd(dim, heads)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, MLP_RATIO * dim), nn.Linear(MLP_RATIO * dim, dim)
        for layer in (self.q, self.kv, self.proj, self.fc1, self.fc2):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.scale_1, self.scale_2 = (nn.Parameter(torch.full((dim,), scale)) for _ in range(2))

    def forward(
        self, tokens: Tensor, others: Tensor, sees: Tensor | None = None, *, weighs: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """tokens [B, K, C] after they attended to others [B, T, C], and the weights [B, K, T], the mean over
        heads, float32 or wider. sees [K, T] bool: which of them; None: all. weighs: whether weights are
        wanted; without them a fused kernel attends."""
        q, k, v = self._projected(tokens, others)
        weights = None
        if weighs:
            logits = widened(q @ k.mT) * q.shape[-1] ** -0.5
            each = (logits if sees is None else logits.masked_fill(~sees, -torch.inf)).softmax(dim=-1)
            mixed, weights = each.to(v.dtype) @ v, each.mean(dim=1)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=sees)
        tokens = tokens + self.scale_1 * self.proj(mixed.transpose(1, 2).flatten(2))
        fed = self.fc2(F.gelu(self.fc1(self.norm2(tokens))))
        return tokens + self.scale_2 * fed, weights

    def _projected(self, tokens: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, K, D], keys and values [B, H, T, D]."""
        q = self.q(self.norm1(tokens)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(self.norm1(others)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v


def cross_macs(queries: int, keys: int, dim: int) -> int:
    """MACs of a CrossBlock for one image."""
    linear = (2 + 2 * MLP_RATIO) * queries + 2 * keys
    return linear * dim * dim + 2 * queries * keys * dim


class SemanticTokens(nn.Module):
    """Puts K semantic tokens in the place of the patches; prefix tokens stay.

    Each starts as the largest value of its region of the grid, in each channel. Then they attend to the
    patches and to one another: in their windows, then everywhere. A patch reads, when the grid is restored,
    the semantic tokens by what they took of it: their pooling and the weights of both attentions. remembers:
    keep the patches for a `Recovery`.
    """

    part_kind = METRIC

    def __init__(
        self, dim: int, heads: int, *, window: int | None, overlap: int, scale: float, remembers: bool
    ):
        super().__init__()
        self.window, self.overlap, self.remembers = window, overlap, remembers
        self.near, self.far = CrossBlock(dim, heads, scale), CrossBlock(dim, heads, scale)

    def forward(self, state: TokenState, r: int) -> TokenState:
        """The state with r tokens less. None of them has merged before."""
        assert not state.merges, "semantic tokens are made of a whole grid, once"
        before, (height, width) = state.patch_tokens, state.grid
        count = state.num_active - state.num_prefix - r
        tokens, reads, centre = self.made(before, (height, width), count)
        prefix = state.tokens[:, : state.num_prefix]
        with torch.autocast(state.tokens.device.type, enabled=False):
            move = assignment_of(reads.to(state.size.dtype), centre, state.num_prefix)
        after = torch.cat([prefix, tokens.to(prefix.dtype)], dim=1)
        after = carry_residual(state, apply(state, move, after))
        return replace(after, replaced=before) if self.remembers else after

    def made(self, patches: Tensor, grid: tuple[int, int], count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Semantic tokens [B, K, C] of patches [B, N, C] of a grid (h, w), K = count; how each patch reads
        them, [B, N, K], whose rows sum to 1; and a patch in the middle of each one's region, [K]."""
        geometry = Geometry(*grid, count, self.window, self.overlap)
        members, share, centre, sees = tables(geometry, patches.device)
        tokens = patches.index_select(1, members.flatten()).unflatten(1, members.shape).amax(dim=2)
        tokens, near = self.near(tokens, torch.cat([tokens, patches], dim=1), sees)
        tokens, far = self.far(tokens, torch.cat([tokens, patches], dim=1))
        assert near is not None and far is not None
        taken = share.to(near.dtype) + near[..., count:] + far[..., count:]
        return tokens, (taken / taken.sum(dim=1, keepdim=True)).mT, centre


class Recovery(nn.Module):
    """The patches again: each attends to the semantic tokens, and keeps what it was. So a head that reads a
    grid has one without unmerging."""

    part_kind = METRIC

    def __init__(self, dim: int, heads: int, scale: float):
        super().__init__()
        self.cross = CrossBlock(dim, heads, scale)

    def forward(self, state: TokenState) -> TokenState:
        """The state with all patches, as if none had merged; itself where none has. Raises ConfigError for
        what is carried otherwise than by `mean`."""
        if state.replaced is None:
            return state
        patches, _ = self.cross(state.replaced, state.patch_tokens, weighs=False)
        prefix = state.tokens[:, : state.num_prefix]
        tokens = torch.cat([prefix, patches.to(prefix.dtype)], dim=1)
        carried = {name: _back(name, item, state) for name, item in state.carried.items()}
        return replace(TokenState.start(tokens, state.grid, state.num_prefix), carried=carried)


def assignment_of(reads: Tensor, centre: Tensor, num_prefix: int) -> Assignment:
    """The move of all patches to semantic tokens, by how each patch reads them [B, N, K], in the dtype of the
    sizes. centre [K]: the patch whose value goes on where one has to be chosen."""
    batch, num_patches, count = reads.shape
    num_tokens, num_slots = num_prefix + num_patches, num_prefix + count
    own = torch.eye(num_prefix, dtype=reads.dtype, device=reads.device).expand(batch, -1, -1)
    head = F.pad(own, (0, count))
    whole = torch.cat([head, F.pad(reads, (num_prefix, 0))], dim=1)
    first = rows_of(batch, num_tokens, reads.device)
    prefix = torch.arange(num_prefix, device=reads.device)
    keep = torch.cat([prefix, num_prefix + centre])
    return Assignment(
        keep=first[:, :1] + keep,
        source=first[:, num_prefix:],
        slot=rows_of(batch, num_slots, reads.device)[:, :1] + num_prefix + reads.argmax(dim=-1),
        num_tokens=num_tokens,
        num_active=num_slots,
        reads=whole,
    )


def _back(name: str, item: Carried, state: TokenState) -> Carried:
    """What semantic tokens carry, at every patch."""
    if item.rule != "mean":
        raise ConfigError(
            f"'{name}' is carried by '{item.rule}', which recovered patches cannot take from semantic "
            "tokens; carry it by 'mean', or give stvit recovery=False"
        )
    flat = item.values.flatten(2) if item.values.ndim > 2 else item.values[..., None]
    back = unmerge_tokens(flat, state.merges)
    return replace(item, values=back.reshape(*back.shape[:2], *item.values.shape[2:]))
