"""timm's blocks that do several things side by side.

`ParallelThingsBlock` has several attentions, and then several MLPs: tokens merge between them.
`ParallelScalingBlock` (ViT-22B) has attention and MLP of the same input: tokens merge behind both. M tokens,
H heads of one attention, D channels of a head.
"""

# pyright: reportIncompatibleMethodOverride=false
# a merging block takes a state, and the library's block tokens

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol, cast

import torch
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock
from torch import Tensor, nn

from pipeline.backbone.attention import Mixed, Place, mix
from pipeline.backbone.become import host
from pipeline.backbone.block import Attended, KeyLayer, MergingBlock, key_layer_of
from pipeline.backbone.hosts.timm_attention import (
    TimmAttention,
    attend,
    parts_of_attention,
    refuses_attention,
)
from pipeline.backbone.packed_linear import linear


class OneOfSeveral(Protocol):
    """One attention of ParallelThingsBlock."""

    norm: nn.Module
    attn: TimmAttention
    ls: nn.Module
    drop_path: nn.Module


@host(ParallelThingsBlock)
class MergingParallelThingsBlock(MergingBlock, ParallelThingsBlock):
    """Several attentions, then several MLPs. Tokens are compared by what the first attention reads, and by
    the keys of all."""

    ffns: nn.ModuleList

    @staticmethod
    def refuses(block: nn.Module) -> str | None:
        return next(filter(None, (refuses_attention(part.attn) for part in _several(block))), None)

    @classmethod
    def passed_by(cls, block: nn.Module) -> Iterable[nn.Module]:
        for part in block.get_submodule("attns").children():
            yield from (part, *parts_of_attention(part.get_submodule("attn")))

    def attend(self, x: Tensor, place: Place) -> Attended:
        parts = _several(self)
        read = [part.norm(x) for part in parts]
        # the embedding reads what the first attention reads
        places = [place, *(replace(place, beside=None) for _ in parts[1:])]
        if place.ahead is not None:
            places = [replace(place, ahead=own) for own in place.ahead.split(len(parts))]
        both = [attend(part.attn, own, at) for part, own, at in zip(parts, read, places, strict=True)]
        joined = {
            name: torch.cat([getattr(own, name) for _, own in both], dim=1)
            for name in ("output", "q", "k", "keys", "queries", "bias")
            if getattr(both[0][1], name) is not None
        }
        partners = [own.partner for _, own in both if own.partner is not None]
        partner = torch.stack(partners).mean(dim=0) if partners else None
        mixed = Mixed(**joined, beside=both[0][1].beside, partner=partner)
        if place.looks:
            return Attended(x, read[0], mixed, self._first.scale)
        updates = [part.drop_path(part.ls(output)) for part, (output, _) in zip(parts, both, strict=True)]
        return Attended(x + torch.stack(updates).sum(dim=0), read[0], mixed, self._first.scale)

    def feed_forward(self, x: Tensor) -> Tensor:
        return x + torch.stack([part(x) for part in self.ffns]).sum(dim=0)

    def key_layer(self) -> KeyLayer | str:
        return "each of its attentions reads tokens behind a norm of its own"

    @property
    def halves(self) -> tuple[Iterable[nn.Module], Iterable[nn.Module]]:
        return self.attns, self.ffns

    @property
    def width(self) -> int:
        return self._first.proj.out_features

    @property
    def heads(self) -> tuple[int, int]:
        return self._first.num_heads * len(self.attns), self._first.head_dim

    @property
    def _first(self) -> TimmAttention:
        return _several(self)[0].attn


def _several(block: nn.Module) -> Sequence[OneOfSeveral]:
    return cast(Sequence[OneOfSeveral], block.attns)


@host(ParallelScalingBlock)
class MergingParallelScalingBlock(MergingBlock, ParallelScalingBlock):
    """Attention and MLP of the same input."""

    @classmethod
    def passed_by(cls, block: nn.Module) -> Iterable[nn.Module]:
        return (block.get_submodule("attn_drop"),)

    def attend(self, x: Tensor, place: Place) -> Attended:
        read = self.in_norm(x)
        hidden, q, k, v = torch.split(linear(self.in_proj, read), self.in_split, dim=-1)
        if self.mlp_bias is not None:
            hidden = hidden + self.mlp_bias
        q, k, v = (part.unflatten(-1, (self.num_heads, self.head_dim)) for part in (q, k, v))
        q, k, v = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2), v.transpose(1, 2)
        dropout = self.attn_drop.p if self.training else 0.0
        mixed = mix(q, k, v, place, scale=self.scale, dropout=dropout)
        if place.looks:
            return Attended(x, read, mixed, self.scale)
        output, hidden = mixed.output.transpose(1, 2).flatten(2), self.mlp_drop(self.mlp_act(hidden))
        if self.out_proj is not None:
            update = linear(self.out_proj, torch.cat([output, hidden], dim=-1))
        else:
            assert self.attn_out_proj is not None and self.mlp_out_proj is not None
            update = linear(self.attn_out_proj, output) + linear(self.mlp_out_proj, hidden)
        return Attended(x + self.drop_path(self.ls(update)), read, mixed, self.scale)

    def feed_forward(self, x: Tensor) -> Tensor:
        return x

    def key_layer(self) -> KeyLayer | str:
        if not isinstance(self.k_norm, nn.Identity):
            return "they pass a norm (k_norm)"
        hidden, queries, keys, _ = self.in_split
        return key_layer_of(self.in_proj, slice(hidden + queries, hidden + queries + keys))

    @property
    def halves(self) -> tuple[Iterable[nn.Module], Iterable[nn.Module]]:
        return [part for name, part in self.named_children() if name != "metric"], ()

    @property
    def width(self) -> int:
        return self.in_proj.in_features

    @property
    def heads(self) -> tuple[int, int]:
        return self.num_heads, self.head_dim

    @property
    def looking(self) -> tuple[int, int]:
        # one layer makes all, also the hidden channels of the MLP
        return self.in_proj.weight.numel(), 0
