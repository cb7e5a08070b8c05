"""Vision models of transformers as they are, with merging, a class for each family. B batch, N patches +
prefix, C channels."""

# pyright: reportIncompatibleMethodOverride=false
# a MergingModel and a model of transformers say otherwise what a forward takes

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionModel,
    Dinov2Model,
    Dinov2WithRegistersModel,
    DINOv3ViTModel,
    Siglip2VisionModel,
    SiglipVisionModel,
    VideoMAEModel,
    ViTModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

import pipeline.backbone.hosts.hugging_face_layers  # noqa: F401 - fills HOSTS
from pipeline.backbone.patching.hugging_face_tower import MergingTower, started
from pipeline.backbone.patching.merging_model import Embedded, MergingModel
from pipeline.backbone.rotary import Rotary, RotaryRule
from pipeline.backbone.tubelets import with_changes
from pipeline.errors import ConfigError
from pipeline.merging.traits import traits_of
from pipeline.token_state import CHANGE, TokenState, wide

NO_NORM = nn.Identity()


class MergingViTModel(MergingTower, ViTModel):
    LAYERS = "layers"

    def embedded(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
    ) -> Embedded:
        patches = self.embeddings.patch_embeddings.projection
        tokens = self.embeddings(
            pixel_values.to(patches.weight.dtype),
            bool_masked_pos=bool_masked_pos,
            interpolate_pos_encoding=bool(interpolate_pos_encoding),
        )
        return Embedded(started(tokens, pixel_values, patches))

    @property
    def last_norm(self) -> nn.Module:
        return self.layernorm

    def pooled(self, tokens: Tensor, *inputs: Any) -> Tensor | None:
        return None if self.pooler is None else self.pooler(tokens)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> BaseModelOutputWithPooling:
        """As transformers'. Raises ConfigError, see `MergingTower.outputs`."""
        options["attention_mask"] = attention_mask
        return self.outputs(options, pixel_values, bool_masked_pos, interpolate_pos_encoding)


class MergingDinov2(MergingTower):
    """DINOv2 with and without registers."""

    LAYERS = "encoder.layer"

    def embedded(self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None) -> Embedded:
        embeddings = self.get_submodule("embeddings")
        tokens = embeddings(pixel_values, bool_masked_pos=bool_masked_pos)
        patches = cast(nn.Conv2d, embeddings.get_submodule("patch_embeddings.projection"))
        return Embedded(started(tokens, pixel_values, patches))

    @property
    def last_norm(self) -> nn.Module:
        return self.get_submodule("layernorm")

    def pooled(self, tokens: Tensor, *inputs: Any) -> Tensor:
        return tokens[:, 0]

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> BaseModelOutputWithPooling:
        """As transformers'. Raises ConfigError, see `MergingTower.outputs`."""
        options["attention_mask"] = attention_mask
        return self.outputs(options, pixel_values, bool_masked_pos)


class MergingDINOv3ViTModel(MergingTower, DINOv3ViTModel):
    LAYERS = "model.layer"
    ROTARY = "rope_embeddings"

    def embedded(self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None) -> Embedded:
        patches = self.embeddings.patch_embeddings
        pixel_values = pixel_values.to(patches.weight.dtype)
        tokens = self.embeddings(pixel_values, bool_masked_pos=bool_masked_pos)
        cosine, sine = self.rope_embeddings(pixel_values)
        state, table = started(tokens, pixel_values, patches), torch.cat([sine, cosine], dim=-1)
        return Embedded(state, Rotary.of([table], state.num_prefix, True, self.merging.rotary))

    @property
    def rope(self) -> nn.Module:
        """As timm calls it, by which an adapter knows that the model has rotary positions."""
        return self.rope_embeddings

    @property
    def last_norm(self) -> nn.Module:
        return self.norm

    def pooled(self, tokens: Tensor, *inputs: Any) -> Tensor:
        return tokens[:, 0]

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None, **options: Any
    ) -> BaseModelOutputWithPooling:
        """As transformers'. Raises ConfigError, see `MergingTower.outputs`."""
        return self.outputs(options, pixel_values, bool_masked_pos)


class MergingImageTower(MergingTower):
    """The image towers of CLIP and SigLIP."""

    LAYERS = "encoder.layers"

    def embedded(self, pixel_values: Tensor, interpolate_pos_encoding: bool | None = False) -> Embedded:
        embeddings = self.get_submodule("embeddings")
        tokens = embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        patches = cast(nn.Conv2d, embeddings.get_submodule("patch_embedding"))
        return Embedded(started(self.first_norm(tokens), pixel_values, patches))

    @property
    def first_norm(self) -> nn.Module:
        """The norm before the first block."""
        return NO_NORM

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool | None = False, **options: Any
    ) -> BaseModelOutputWithPooling:
        """As transformers'. Raises ConfigError, see `MergingTower.outputs`."""
        return self.outputs(options, pixel_values, interpolate_pos_encoding)


class MergingCLIPVisionModel(MergingImageTower, CLIPVisionModel):
    """Its `last_hidden_state` comes before the last norm, which only the class token passes."""

    @property
    def first_norm(self) -> nn.Module:
        return self.pre_layrnorm

    @property
    def last_norm(self) -> nn.Module:
        return NO_NORM

    def pooled(self, tokens: Tensor, *inputs: Any) -> Tensor:
        return self.post_layernorm(tokens[:, 0])


class MergingSiglipVisionModel(MergingImageTower, SiglipVisionModel):
    CLASS_TOKEN = False

    @property
    def last_norm(self) -> nn.Module:
        return self.post_layernorm

    def pooled(self, tokens: Tensor, *inputs: Any) -> Tensor | None:
        return self.head(tokens) if self.use_head else None


class MergingSiglip2VisionModel(MergingTower, Siglip2VisionModel):
    """Patches of images of any size and shape, in a batch with padding behind them. Padding has size 0, so no
    token attends to it."""

    LAYERS = "encoder.layers"
    CLASS_TOKEN = False
    ONE_GRID = False

    def embedded(
        self, pixel_values: Tensor, pixel_attention_mask: Tensor, spatial_shapes: Tensor
    ) -> Embedded:
        tokens = self.embeddings(pixel_values, spatial_shapes)
        size, count = pixel_attention_mask.to(wide(tokens.dtype)), tokens.shape[1]
        number, width = torch.arange(count, device=tokens.device), spatial_shapes[:, 1:].to(tokens.device)
        places = torch.stack([number // width, number % width], dim=-1)
        return Embedded(TokenState(tokens, size, (1, count), 0, count, padded=True, places=places))

    @property
    def last_norm(self) -> nn.Module:
        return self.post_layernorm

    def pooled(self, tokens: Tensor, *inputs: Any) -> Tensor | None:
        return self.head(tokens, inputs[1]) if self.use_head else None

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        pixel_attention_mask: Tensor | None,
        spatial_shapes: Tensor,
        **options: Any,
    ) -> BaseModelOutputWithPooling:
        """As transformers'. Raises ConfigError for a batch without pixel_attention_mask, and see
        `MergingTower.outputs`."""
        if pixel_attention_mask is None:
            raise ConfigError(
                "a batch of patches has no mask; give pixel_attention_mask [B, N], which says what is no "
                "padding"
            )
        return self.outputs(options, pixel_values, pixel_attention_mask, spatial_shapes)


class MergingVideoMAEModel(MergingTower, VideoMAEModel):
    """Clips [B, T, 3, H, W], whose tubelets all attend to each other."""

    LAYERS = "encoder.layer"
    CLASS_TOKEN = False

    @classmethod
    def traits(cls, model: nn.Module, rule: RotaryRule) -> frozenset[str]:
        config: Any = model.config
        return traits_of(class_token=False, times=config.num_frames // config.tubelet_size)

    def embedded(self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None) -> Embedded:
        if bool_masked_pos is not None:
            raise ConfigError("tubelets that are masked have no place in a grid; leave bool_masked_pos out")
        patches = self.embeddings.patch_embeddings
        tokens = self.embeddings(pixel_values, None)
        sides = (patches.tubelet_size, *patches.patch_size)
        inputs = (pixel_values.shape[1], *pixel_values.shape[-2:])
        grid = tuple(pixels // side for pixels, side in zip(inputs, sides, strict=True))
        state = TokenState.start(tokens, grid, 0)
        if CHANGE in self.merging.policy.carries:
            state = with_changes(state, pixel_values, sides[0], sides[1:])
        return Embedded(state)

    @property
    def last_norm(self) -> nn.Module:
        return NO_NORM if self.layernorm is None else self.layernorm

    def pooled(self, tokens: Tensor, *inputs: Any) -> None:
        """It has no pooler."""

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None, **options: Any
    ) -> BaseModelOutputWithPooling:
        """As transformers'. Raises ConfigError for masked tubelets, and see `MergingTower.outputs`."""
        return self.outputs(options, pixel_values, bool_masked_pos)


TOWERS: dict[type[nn.Module], type[MergingModel]] = {
    ViTModel: MergingViTModel,
    Dinov2Model: MergingDinov2,
    Dinov2WithRegistersModel: MergingDinov2,
    DINOv3ViTModel: MergingDINOv3ViTModel,
    CLIPVisionModel: MergingCLIPVisionModel,
    SiglipVisionModel: MergingSiglipVisionModel,
    Siglip2VisionModel: MergingSiglip2VisionModel,
    VideoMAEModel: MergingVideoMAEModel,
}
"""Class of a model of transformers -> the host of it and of its subclasses."""
