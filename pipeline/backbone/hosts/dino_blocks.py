"""Blocks of the models that torch hub has of DINOv2 and DINOv3. Their packages are not imported: blocks are
known by the names of their classes and parts. B batch, M tokens, C channels, H heads, D channels of a head.
"""

# pyright: reportIncompatibleMethodOverride=false
# what is refused depends on the class

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from pipeline.backbone.attention import EVERY, Place, mix, projections
from pipeline.backbone.become import host
from pipeline.backbone.block import Attended, KeyLayer, MergingBlock, key_layer_of
from pipeline.backbone.classes import Host, label
from pipeline.backbone.hosts.feed_forward import through
from pipeline.backbone.packed_linear import linear, linear_rows

BLOCK = {"norm1", "attn", "ls1", "norm2", "mlp", "ls2"}
ATTENTION = {"qkv", "proj", "proj_drop"}
"""Names of the parts that every block and every attention has."""


class DinoAttention(nn.Module):
    """What both attentions have, for the type checker."""

    qkv: nn.Linear
    proj: nn.Linear
    proj_drop: nn.Dropout
    num_heads: int
    attn_drop: nn.Dropout | float


class MergingDinoBlock(Host, MergingBlock):
    """What both have: attention and MLP, each with a norm before it and a scale of its channels behind it."""

    ATTENTIONS: tuple[str, ...]
    """Labels of the attentions that `attend` computes."""
    MORE = set[str]()
    """Parts of some blocks."""

    attn: DinoAttention
    mlp: nn.Module
    norm1: nn.Module
    norm2: nn.Module
    ls1: nn.Module
    ls2: nn.Module
    sample_drop_ratio: float
    """Share of the images that a half of the block leaves out in training."""

    @classmethod
    def refuses(cls, block: nn.Module) -> str | None:
        attention = getattr(block, "attn", None)
        if not isinstance(attention, nn.Module) or label(type(attention)) not in cls.ATTENTIONS:
            return f"its attention is {label(type(attention))}; merging knows {', '.join(cls.ATTENTIONS)}"
        return _differs(block, BLOCK, cls.MORE) or _differs(attention, ATTENTION, {"attn_drop"})

    @classmethod
    def passed_by(cls, block: nn.Module) -> Iterable[nn.Module]:
        return (block.get_submodule("attn"),)

    def attend(self, x: Tensor, place: Place) -> Attended:
        read, attn, scale = self.norm1(x), self.attn, self.heads[1] ** -0.5
        first, stop = place.projected
        rows = slice(first * self.width, stop * self.width)
        made = linear(attn.qkv, read) if (first, stop) == EVERY else linear_rows(attn.qkv, read, rows)
        packed = made.unflatten(-1, (stop - first, *self.heads)).permute(2, 0, 3, 1, 4)
        q, k, v = projections(packed.unbind(0))
        mixed = mix(q, k, v, place, scale=scale, dropout=self._dropout, packed=packed)
        if place.looks:
            return Attended(x, read, mixed, scale)
        update = self.ls1(attn.proj_drop(linear(attn.proj, mixed.output.transpose(1, 2).flatten(2))))
        return Attended(x + self._dropped(update), read, mixed, scale)

    def feed_forward(self, x: Tensor) -> Tensor:
        return x + self._dropped(self.ls2(through(self.mlp, self.norm2(x))))

    def key_layer(self) -> KeyLayer | str:
        inner, qkv = self.heads[0] * self.heads[1], self.attn.qkv
        rows = slice(inner, 2 * inner)
        keys, mask = key_layer_of(qkv, rows), getattr(qkv, "bias_mask", None)
        if mask is None or isinstance(keys, str) or keys.bias is None:
            return keys
        return replace(keys, bias=keys.bias * mask[rows])  # DINOv3 masks the bias of keys

    @property
    def halves(self) -> tuple[Iterable[nn.Module], Iterable[nn.Module]]:
        return (self.attn,), (self.mlp,)

    @property
    def width(self) -> int:
        return self.attn.proj.out_features

    @property
    def heads(self) -> tuple[int, int]:
        return self.attn.num_heads, self.width // self.attn.num_heads

    @property
    def _dropout(self) -> float:
        """Of the attention's weights; DINOv3 has none, whatever its module says."""
        return 0.0

    def _dropped(self, update: Tensor) -> Tensor:
        """The update [B, M, C] of a half of the block; in training of some images, and more of it, as they
        are drawn in the library."""
        if not self.training or self.sample_drop_ratio <= 0:
            return update
        batch = update.shape[0]
        kept = max(int(batch * (1 - self.sample_drop_ratio)), 1)
        rows = torch.randperm(batch, device=update.device)[:kept]
        return update * update.new_zeros(batch, 1, 1).index_fill(0, rows, batch / kept)


@host("dinov2.NestedTensorBlock", "dinov2.Block")
class MergingDinov2Block(MergingDinoBlock):
    ATTENTIONS = ("dinov2.MemEffAttention", "dinov2.Attention")
    MORE = {"drop_path1", "drop_path2"}

    drop_path1: nn.Module

    @property
    def _dropout(self) -> float:
        rate = self.attn.attn_drop
        rate = rate.p if isinstance(rate, nn.Dropout) else rate
        return rate if self.training else 0.0

    def _dropped(self, update: Tensor) -> Tensor:
        if 0 < self.sample_drop_ratio <= 0.1:
            return self.drop_path1(update)
        return super()._dropped(update)


@host("dinov3.SelfAttentionBlock")
class MergingDinov3Block(MergingDinoBlock):
    ATTENTIONS = ("dinov3.SelfAttention",)


def _differs(part: nn.Module, needed: set[str], more: set[str]) -> str | None:
    """What a part lacks, or has that merging would leave out; None where it fits."""
    there = set(part._modules)
    for names, verb in ((needed - there, "lacks"), (there - needed - more, "has")):
        if names:
            return (
                f"its {label(type(part))} {verb} {', '.join(sorted(names))}, unlike those that merging knows"
            )
    return None
