"""Layers of vision models of Hugging Face transformers.

It imports transformers, so only `pipeline.backbone.patching.hugging_face_models` imports it.

Attention is computed here and not by transformers' attention function, whichever that is: `eager`, `sdpa`
and others merge alike. B batch, M tokens, C channels, H heads, D channels of a head.
"""

# pyright: reportIncompatibleMethodOverride=false
# a merging block takes a state, and the library's layer tokens

from collections.abc import Callable, Iterable
from typing import Any

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
from transformers.models.vit.modeling_vit import ViTAttention, ViTLayer

from pipeline.backbone.attention import Place, mix, projections
from pipeline.backbone.block import Attended, KeyLayer, MergingBlock, host, key_layer_of
from pipeline.backbone.hosts.feed_forward import through
from pipeline.backbone.packed_linear import linear

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class MergingLayer(MergingBlock):
    """A pre-norm layer: attention, then an MLP, each with a norm before it and a residual connection."""

    NORMS: tuple[str, str] = ("norm1", "norm2")
    ATTENTION: tuple[str, type[nn.Module]]
    """Its name in the layer, and its class."""
    OUTPUT = "o_proj"
    NUMBERS = ("scaling", "num_attention_heads", "attention_dropout")
    """How the attention calls the factor of its logits, H, and its dropout."""

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
        scale, _, dropout = (getattr(attention, name) for name in self.NUMBERS)
        q, k, v = projections(
            [
                linear(attention.get_submodule(name), read).unflatten(-1, (-1, self.heads[1])).transpose(1, 2)
                for name in PROJECTIONS[slice(*place.projected)]
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
        return key_layer_of(self._attention.get_submodule(PROJECTIONS[1]))

    @property
    def halves(self) -> tuple[Iterable[nn.Module], Iterable[nn.Module]]:
        return (self._attention,), (self.get_submodule("mlp"),)

    @property
    def width(self) -> int:
        return self._attention.get_submodule("q_proj").in_features  # pyright: ignore[reportReturnType]

    @property
    def heads(self) -> tuple[int, int]:
        return getattr(self._attention, self.NUMBERS[1]), self._attention.head_dim  # pyright: ignore[reportReturnType]

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
    NUMBERS = ("scaling", "num_heads", "dropout")


class MergingTowerLayer(MergingLayer):
    """Layers of models of images and texts."""

    NORMS = ("layer_norm1", "layer_norm2")
    OUTPUT = "out_proj"
    NUMBERS = ("scale", "num_heads", "dropout")


@layer(CLIPEncoderLayer)
class MergingCLIPEncoderLayer(MergingTowerLayer, CLIPEncoderLayer):
    ATTENTION = ("self_attn", CLIPAttention)


@layer(SiglipEncoderLayer)
class MergingSiglipEncoderLayer(MergingTowerLayer, SiglipEncoderLayer):
    ATTENTION = ("self_attn", SiglipAttention)


@layer(Siglip2EncoderLayer)
class MergingSiglip2EncoderLayer(MergingTowerLayer, Siglip2EncoderLayer):
    ATTENTION = ("self_attn", Siglip2Attention)
