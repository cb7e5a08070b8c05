"""timm's blocks of Eva: EVA, EVA02, DINOv3, PE, rope-vit and others."""

# pyright: reportIncompatibleMethodOverride=false
# a merging block takes a state, and the library's block tokens

from timm.models.eva import EvaBlock, EvaBlockPostNorm
from torch import Tensor, nn

from pipeline.backbone.attention import Place
from pipeline.backbone.become import host
from pipeline.backbone.block import Attended
from pipeline.backbone.hosts.feed_forward import through
from pipeline.backbone.hosts.timm_attention import attend
from pipeline.backbone.hosts.timm_blocks import OneAttention, PostNorm


@host(EvaBlock)
class MergingEvaBlock(OneAttention, EvaBlock):
    """timm's pre-norm EvaBlock, whose layer scales are parameters of the block."""

    def attend(self, x: Tensor, place: Place) -> Attended:
        read = self.norm1(x)
        output, mixed = attend(self.attn, read, place)
        output = output if place.looks else x + self.drop_path1(_scaled(output, self.gamma_1))
        return Attended(output, read, mixed, self.attn.scale)

    def feed_forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path2(_scaled(through(self.mlp, self.norm2(x)), self.gamma_2))


@host(EvaBlockPostNorm)
class MergingEvaBlockPostNorm(PostNorm, EvaBlockPostNorm):
    """timm's EvaBlock with norms behind each half."""


def _scaled(x: Tensor, scale: nn.Parameter | None) -> Tensor:
    return x if scale is None else scale * x
