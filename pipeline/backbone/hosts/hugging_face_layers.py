"""Layers of vision models of Hugging Face transformers.

It imports transformers, so only `pipeline.backbone.patching.hugging_face_models` imports it.

Attention is computed here and not by transformers' attention function, whichever that is: `eager`, `sdpa`
and others merge alike. B batch, M tokens, C channels, H heads, D channels of a head.
"""

# pyright: reportIncompatibleMethodOverride=false
# a merging block takes a state, and the library's layer tokens

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, cast

from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer
from transformers.models.dinov2.modeling_dinov2 import Dinov2Attention, Dinov2Layer
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import (
    Dinov2WithRegistersAttention,
    Dinov2WithRegistersLayer,
)
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTAttention, DINOv3ViTLayer
from transformers.models.siglip.modeling_siglip import SiglipAttention, SiglipEncoderLayer
from transformers.models.siglip2.modeling_siglip2 import Siglip2Attention, Siglip2EncoderLayer
from transformers.models.videomae.modeling_videomae import VideoMAEAttention, VideoMAELayer
from transformers.models.vit.modeling_vit import ViTAttention, ViTLayer

from pipeline.backbone.attention import Place, mix, projections
from pipeline.backbone.become import host
from pipeline.backbone.block import Attended, KeyLayer, MergingBlock, key_layer_of
from pipeline.backbone.hosts.feed_forward import through
from pipeline.backbone.packed_linear import linear


class MergingLayer(MergingBlock):
    """A pre-norm layer: attention, then an MLP, each with a norm before it and a residual connection."""

    NORMS: tuple[str, str] = ("norm1", "norm2")
    ATTENTION: tuple[str, type[nn.Module]]
    """Its name in the layer, and its class."""
    PROJECTIONS: tuple[str, str, str] = ("q_proj", "k_proj", "v_proj")
    OUTPUT = "o_proj"
    NUMBERS = ("scaling", "num_attention_heads", "attention_dropout", "head_dim")
    """How the attention calls the factor of its logits, H, its dropout, and D."""

    def __init_subclass__(cls, **options: Any) -> None:
        """transformers wraps the forward of each layer to recompute it in the backward pass, in a way that
        does not see a state. `run_blocks` recomputes merging blocks."""
        super().__init_subclass__(**options)
        if "forward" in vars(cls):
            del cls.forward

    @classmethod
    def refuses(cls, block: nn.Module) -> str | None:
        name, known = cls.ATTENTION
        found = type(block.get_submodule(name))
        return (
            None if found is known else f"its attention is {found.__name__}; merging knows {known.__name__}"
        )

    @classmethod
    def passed_by(cls, block: nn.Module) -> Iterable[nn.Module]:
        return (block.get_submodule(cls.ATTENTION[0]),)

    def attend(self, x: Tensor, place: Place) -> Attended:
        attention, read = self._attention, self.get_submodule(self.NORMS[0])(x)
        scale, heads, dropout, dim = attrgetter(*self.NUMBERS)(attention)
        q, k, v = projections(
            [
                linear(attention.get_submodule(name), read).unflatten(-1, (heads, dim)).transpose(1, 2)
                for name in self.PROJECTIONS[slice(*place.projected)]
            ]
        )
        mixed = mix(q, k, v, place, scale=scale, dropout=dropout if self.training else 0.0)
        if place.looks:
            return Attended(x, read, mixed, scale)
        output = linear(attention.get_submodule(self.OUTPUT), mixed.output.transpose(1, 2).flatten(2))
        return Attended(x + self._branch(output, 1), read, mixed, scale)

    def feed_forward(self, x: Tensor) -> Tensor:
        return x + self._branch(through(self.get_submodule("mlp"), self.get_submodule(self.NORMS[1])(x)), 2)

    def _branch(self, update: Tensor, half: int) -> Tensor:
        """What stands between the first or second half of a layer and its sum with the tokens."""
        return update

    def key_layer(self) -> KeyLayer | str:
        return key_layer_of(self._attention.get_submodule(self.PROJECTIONS[1]))

    @property
    def halves(self) -> tuple[Iterable[nn.Module], Iterable[nn.Module]]:
        return (self._attention,), (self.get_submodule("mlp"),)

    @property
    def width(self) -> int:
        return cast(nn.Linear, self._attention.get_submodule(self.PROJECTIONS[0])).in_features

    @property
    def heads(self) -> tuple[int, int]:
        _, heads, _, dim = attrgetter(*self.NUMBERS)(self._attention)
        return heads, dim

    @property
    def _attention(self) -> nn.Module:
        return self.get_submodule(self.ATTENTION[0])


def layer(library: type[nn.Module]) -> Callable[[type[MergingLayer]], type[MergingLayer]]:
    """Registers the decorated class as the merging block of a layer. It gets the layer's name, by which
    transformers and accelerate find layers, for instance to wrap each for FSDP."""

    def register(merging: type[MergingLayer]) -> type[MergingLayer]:
        merging.__name__ = library.__name__
        host(library)(merging)
        return merging

    return register


@layer(ViTLayer)
class MergingViTLayer(MergingLayer, ViTLayer):
    NORMS = ("layernorm_before", "layernorm_after")
    ATTENTION = ("attention", ViTAttention)

    def _branch(self, update: Tensor, half: int) -> Tensor:
        return self.dropout(update)


@layer(VideoMAELayer)
class MergingVideoMAELayer(MergingLayer, VideoMAELayer):
    """Queries, keys and values in a part of the attention, and no part for the whole MLP."""

    NORMS = ("layernorm_before", "layernorm_after")
    ATTENTION = ("attention", VideoMAEAttention)
    PROJECTIONS = ("attention.query", "attention.key", "attention.value")
    OUTPUT = "output.dense"
    NUMBERS = (
        "attention.scaling",
        "attention.num_attention_heads",
        "attention.dropout_prob",
        "attention.attention_head_size",
    )

    @classmethod
    def passed_by(cls, block: nn.Module) -> Iterable[nn.Module]:
        names = ("attention", "attention.attention", "attention.output", "output")
        return tuple(block.get_submodule(name) for name in names)

    def feed_forward(self, x: Tensor) -> Tensor:
        inner = self.intermediate(self.layernorm_after(x))
        return x + self._branch(linear(self.output.dense, inner), 2)

    def _branch(self, update: Tensor, half: int) -> Tensor:
        return (self.attention.output if half == 1 else self.output).dropout(update)

    @property
    def halves(self) -> tuple[Iterable[nn.Module], Iterable[nn.Module]]:
        return (self.attention,), (self.intermediate, self.output)


class MergingScaledLayer(MergingLayer):
    """With scales of the channels, and paths dropped in training."""

    drop_path: nn.Module

    def _branch(self, update: Tensor, half: int) -> Tensor:
        return self.drop_path(self.get_submodule(f"layer_scale{half}")(update))


@layer(Dinov2Layer)
class MergingDinov2Layer(MergingScaledLayer, Dinov2Layer):
    ATTENTION = ("attention", Dinov2Attention)


@layer(Dinov2WithRegistersLayer)
class MergingDinov2WithRegistersLayer(MergingScaledLayer, Dinov2WithRegistersLayer):
    ATTENTION = ("attention", Dinov2WithRegistersAttention)


@layer(DINOv3ViTLayer)
class MergingDINOv3ViTLayer(MergingScaledLayer, DINOv3ViTLayer):
    ATTENTION = ("attention", DINOv3ViTAttention)
    NUMBERS = ("scaling", "num_heads", "dropout", "head_dim")


class MergingTowerLayer(MergingLayer):
    """Layers of models of images and texts."""

    NORMS = ("layer_norm1", "layer_norm2")
    OUTPUT = "out_proj"
    NUMBERS = ("scale", "num_heads", "dropout", "head_dim")


@layer(CLIPEncoderLayer)
class MergingCLIPEncoderLayer(MergingTowerLayer, CLIPEncoderLayer):
    ATTENTION = ("self_attn", CLIPAttention)


@layer(SiglipEncoderLayer)
class MergingSiglipEncoderLayer(MergingTowerLayer, SiglipEncoderLayer):
    ATTENTION = ("self_attn", SiglipAttention)


@layer(Siglip2EncoderLayer)
class MergingSiglip2EncoderLayer(MergingTowerLayer, Siglip2EncoderLayer):
    ATTENTION = ("self_attn", Siglip2Attention)
