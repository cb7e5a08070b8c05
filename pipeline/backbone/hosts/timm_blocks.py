"""timm's blocks of VisionTransformer and NaFlexVit: norm before each half, or behind it."""

# pyright: reportIncompatibleMethodOverride=false
# a merging block takes a state, and the library's block tokens

from collections.abc import Iterable

from timm.models.vision_transformer import Block, ResPostBlock
from torch import Tensor, nn

from pipeline.backbone.attention import Place
from pipeline.backbone.become import host
from pipeline.backbone.block import Attended, KeyLayer, MergingBlock
from pipeline.backbone.hosts.feed_forward import add_mlp, idle, through
from pipeline.backbone.hosts.timm_attention import (
    TimmAttention,
    attend,
    keys_of_attention,
    parts_of_attention,
    refuses_attention,
)


class OneAttention(MergingBlock):
    """A block with one of timm's attention modules, `attn`, and then an MLP, `mlp`."""

    attn: TimmAttention
    mlp: nn.Module

    @staticmethod
    def refuses(block: nn.Module) -> str | None:
        return refuses_attention(getattr(block, "attn", None))

    @classmethod
    def passed_by(cls, block: nn.Module) -> Iterable[nn.Module]:
        return parts_of_attention(block.get_submodule("attn"))

    def key_layer(self) -> KeyLayer | str:
        return keys_of_attention(self.attn)

    @property
    def halves(self) -> tuple[Iterable[nn.Module], Iterable[nn.Module]]:
        return (self.attn,), (self.mlp,)

    @property
    def width(self) -> int:
        return self.attn.proj.out_features

    @property
    def heads(self) -> tuple[int, int]:
        return self.attn.num_heads, self.attn.head_dim

    @property
    def looking(self) -> tuple[int, int]:
        if self.attn.qkv is not None:
            return super().looking
        macs = sum(self.attn.get_parameter(f"{name}.weight").numel() for name in ("q_proj", "k_proj"))
        return macs, macs


@host(Block)
class MergingTimmBlock(OneAttention, Block):
    """timm's pre-norm Block."""

    def can_ask(self) -> bool:
        return not any(
            isinstance(part, nn.Dropout) and part.training and part.p > 0 for part in self.modules()
        )

    def attend(self, x: Tensor, place: Place) -> Attended:
        read, alone = self.norm1(x), idle(self.ls1, self.drop_path1)
        x = x if place.queries is None else x[:, : place.queries]
        output, mixed = attend(self.attn, read, place, x if alone else None)
        if not (alone or place.looks):
            output = x + self.drop_path1(self.ls1(output))
        return Attended(output, read, mixed, self.attn.scale, self.norm1)

    def feed_forward(self, x: Tensor) -> Tensor:
        return add_mlp(x, self.mlp, self.norm2(x), self.ls2, self.drop_path2)


class PostNorm(OneAttention):
    """Norms behind attention and MLP. The attention reads the tokens as they are."""

    norm1: nn.Module
    norm2: nn.Module
    drop_path1: nn.Module
    drop_path2: nn.Module

    def attend(self, x: Tensor, place: Place) -> Attended:
        output, mixed = attend(self.attn, x, place)
        output = output if place.looks else x + self.drop_path1(self.norm1(output))
        return Attended(output, x, mixed, self.attn.scale)

    def feed_forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path2(self.norm2(through(self.mlp, x)))


@host(ResPostBlock)
class MergingResPostBlock(PostNorm, ResPostBlock):
    """timm's block with norms behind each half."""
