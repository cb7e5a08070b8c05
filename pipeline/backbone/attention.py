"""Proportional attention: a token counts as often as the patches it holds (ToMe, section 3.2).

B batch, M tokens, H heads, D channels per head.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.backbone.attention_kernels import Operands, attend
from pipeline.backbone.exact_attention import exact_attention
from pipeline.backbone.masked_attention import masked_attention
from pipeline.backbone.packed_linear import Beside
from pipeline.backbone.rotary import Rope, mean_by_rows, unmerged
from pipeline.merging.apply import replay
from pipeline.merging.unmerge import slot_of
from pipeline.token_state import Assignment, wide, widened


def proportional_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    size: Tensor | None,
    *,
    scale: float,
    dropout: float = 0.0,
    packed: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """softmax(scale * q k^T + log size + bias) v through PyTorch's fused kernels.

    q, k, v [B, H, M, D]; size [B, M], float32 (float64 with q in float64), or None; bias [B, H, M], of the
    same dtype, or None -> [B, H, M, D]. packed [3, B, H, M, D]: the tensor of q, k and v, where they lie in
    one; it is then copied at once.

    The logarithm is the kernel's mask where that costs neither the fused kernel nor precision; elsewhere it
    becomes extra channels of the key, against ones in the query. On a GPU the fastest of several ways is
    taken; see `attention_kernels`.
    """
    if size is None and bias is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale)
    # under CUDA's autocast the norms of queries and keys return float32, and the kernel would round the mask
    q, k = (x if x.dtype == v.dtype else x.to(v.dtype) for x in (q, k))
    return attend(Operands(q, k, v, size, bias, packed, scale, dropout))


def reference_attention(q: Tensor, k: Tensor, v: Tensor, size: Tensor | None, *, scale: float) -> Tensor:
    """`proportional_attention` by its definition, for tests: softmax weights times size, renormalised, in
    float32 or wider."""
    logits = (widened(q) @ widened(k).mT) * scale
    weights = (logits - logits.amax(dim=-1, keepdim=True)).exp()
    if size is not None:
        weights = weights * size[:, None, None, :]
    return (weights / weights.sum(dim=-1, keepdim=True)) @ widened(v)


@dataclass(frozen=True)
class Place:
    """What attention has to know of the tokens beside their channels. size [B, M], or None where each counts
    once. exact: round as the authors' release does, without attention dropout, where positions give no bias;
    see `exact_attention`. queries: only the first so many tokens attend to all; None: each does. It goes with
    no rotary positions. beside: a layer that reads what the attention reads, and may be computed with its
    projection. by_size: whether tokens that merge at the block's entry count by size. looks: only queries and
    keys are wanted, and nothing attends. ahead: the tokens merged right before they attend. partner [B, M]: a
    number of each token that moves as tokens do, without gradient. masks: sizes are masks, 0 or 1; see
    `masked_attention`. salient: the evidence that the tokens carry on as their saliency, one of
    `pipeline.backbone.token_mixup.SALIENCIES`. extra [B, E, C]: further tokens of the block's input that are
    attended to, and nothing else; no token has merged then."""

    size: Tensor | None = None
    rope: Rope | None = None
    exact: bool = False
    queries: int | None = None
    beside: Beside | None = None
    by_size: bool = False
    looks: bool = False
    ahead: "Ahead | None" = None
    partner: Tensor | None = None
    masks: bool = False
    salient: str | None = None
    extra: Tensor | None = None

    @property
    def projected(self) -> tuple[int, int]:
        """Of queries, keys and values, in this order, the first one that is made of the tokens, and the one
        behind the last."""
        if self.looks:
            return 0, 2
        return EVERY if self.ahead is None else (2, 3)


EVERY = (0, 3)
"""`Place.projected` of an attention without merging before it."""


def projections(made: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, of the ones that `Place.projected` asks for. In place of the others, which
    nobody reads, is one of these."""
    return made[0], made[min(1, len(made) - 1)], made[-1]


@dataclass(frozen=True)
class Ahead:
    """Attention of tokens that merged right before it, by the logits of the tokens before the merge (MCTF's
    one-step-ahead attention).

    It is softmax weights [B, H, M, M] whose columns are summed over each group, and whose rows are averaged
    over it as its tokens were, times the values of the merged tokens. The sum of columns is the same as
    values that all members of a group share, the mean of rows the same as that of outputs. So a fused kernel
    computes it, without the weights in memory.

    q, k [B, H, M, D]: before rotary positions; place: of the tokens before; size [B, M]: theirs; merge: that
    of all of a token, without shares.
    """

    q: Tensor
    k: Tensor
    place: Place
    size: Tensor
    merge: Assignment

    def mix(self, v: Tensor, *, scale: float, dropout: float) -> Tensor:
        """[B, H, K, D], from the values [B, H, K, D] of the merged tokens."""
        assert self.merge.share is None, "groups are of whole tokens"
        shared = unmerged(v, slot_of(self.merge))
        every = mix(self.q, self.k, shared, self.place, scale=scale, dropout=dropout).output
        return replay(every.transpose(1, 2), (self.merge,), self.size).transpose(1, 2)

    def split(self, count: int) -> list["Ahead"]:
        """Those of `count` attentions whose heads lie side by side."""
        both = zip(self.q.chunk(count, dim=1), self.k.chunk(count, dim=1), strict=True)
        return [replace(self, q=q, k=k) for q, k in both]


@dataclass(frozen=True)
class Mixed:
    """What attention gives: output [B, H, M, D], of the tokens that attend; q, k [B, H, M, D], as in its
    logits, q of those that attend; keys, queries [B, H, M, D], before rotary positions, the latter where the
    place `looks`; beside [B, M, G]: the outputs of `Place.beside`, where it was computed; partner [B, M]: of
    those that attend, the mean over heads of `Place.partner` of what they attend to, where it is given; bias
    [B, H, M]: added to the logits of each key, where positions give one."""

    output: Tensor
    q: Tensor
    k: Tensor
    keys: Tensor
    beside: Tensor | None = None
    queries: Tensor | None = None
    partner: Tensor | None = None
    bias: Tensor | None = None


def mix(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    place: Place,
    *,
    scale: float,
    dropout: float = 0.0,
    packed: Tensor | None = None,
) -> Mixed:
    """Attention of tokens that stand for several patches, at several positions. q, k, v, packed: see
    `proportional_attention`; of what `Place.projected` leaves out nothing is read."""
    mixed = _mix(q, k, v, place, scale=scale, dropout=dropout, packed=packed)
    if place.partner is None:
        return mixed
    return replace(mixed, partner=_followed(q, k, v, place, place.partner, scale))


@torch.no_grad()
def _followed(q: Tensor, k: Tensor, v: Tensor, place: Place, partner: Tensor, scale: float) -> Tensor:
    """[B, N]: the mean over heads of the numbers [B, M] that the N tokens which attend attend to, in their
    dtype. As values with as many channels as v, since a fused kernel takes no others. Without dropout."""
    values = partner.to(v.dtype)[:, None, :, None].expand_as(v).contiguous()
    output = _mix(q, k, values, replace(place, partner=None, exact=False), scale=scale).output
    return widened(output[..., 0]).mean(dim=1).to(partner.dtype)


def _mix(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    place: Place,
    *,
    scale: float,
    dropout: float = 0.0,
    packed: Tensor | None = None,
) -> Mixed:
    if place.ahead is not None:
        return Mixed(place.ahead.mix(v, scale=scale, dropout=dropout), q, k, k)
    if place.rope is not None and place.rope.rows is not None:
        output = v if place.looks else _of_each_patch(q, k, v, place.rope, scale=scale, dropout=dropout)
        return Mixed(output, q, k, k, queries=q if place.looks else None)
    keys, queries, bias = k, q, None
    if place.rope is not None:
        bias, packed = place.rope.key_bias(q, k, scale, place.size), None
        q, k = (place.rope.rotate(x).type_as(v) for x in (q, k))
    if place.looks:
        return Mixed(v, q, k, keys, queries=queries, bias=bias)
    q = q if place.queries is None else q[:, :, : place.queries]
    options = {"scale": scale, "packed": packed, "dropout": dropout, "bias": bias}
    return Mixed(_attend(q, k, v, place, **options), q, k, keys, bias=bias)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    place: Place,
    *,
    scale: float,
    packed: Tensor | None,
    dropout: float,
    bias: Tensor | None,
) -> Tensor:
    """[B, H, N, D], from rotated q [B, H, N, D] of the tokens that attend, and k, v [B, H, M, D] of all."""
    size = place.size
    if place.masks:
        assert size is not None, "masks are sizes"
        return masked_attention(q, k, v, size, scale=scale, bias=bias, dropout=dropout)
    if place.exact and bias is None:
        if size is None:
            size = torch.ones(k.shape[0], k.shape[2], dtype=wide(k.dtype), device=k.device)
        return exact_attention(q, k, v, size, scale=scale, packed=packed)
    packed = packed if place.queries is None else None
    return proportional_attention(q, k, v, size, scale=scale, dropout=dropout, packed=packed, bias=bias)


def _of_each_patch(q: Tensor, k: Tensor, v: Tensor, rope: Rope, *, scale: float, dropout: float) -> Tensor:
    """[B, H, M, D]: attention of all patches, each at its own position, as means of each token's."""
    assert rope.rows is not None
    q_all, k_all, v_all = (unmerged(x, rope.rows) for x in (q, k, v))
    every = proportional_attention(
        rope.rotate(q_all), rope.rotate(k_all), v_all, rope.counts, scale=scale, dropout=dropout
    )
    return mean_by_rows(every.transpose(1, 2), rope.rows, q.shape[2], rope.counts).transpose(1, 2)
