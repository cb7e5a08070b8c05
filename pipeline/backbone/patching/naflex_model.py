"""timm's NaFlexVit as it is, with merging: images of one size, or patches of images of any size and shape, in
a batch with padding. B batch, N patches + prefix."""

from dataclasses import replace
from typing import Any, cast

# pyright: reportIncompatibleMethodOverride=false
from timm.models.naflexvit import NaFlexEmbeds, NaFlexVit
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

from pipeline.backbone.patching.merging_model import Embedded
from pipeline.backbone.patching.timm_models import MergingTimmModel, refuse_mask, timm_rotary
from pipeline.backbone.rotary import RotaryRule
from pipeline.errors import ConfigError
from pipeline.merging.traits import traits_of
from pipeline.merging.unmerge import unmerge_state
from pipeline.token_state import TokenState


class MergingNaFlexVit(MergingTimmModel, NaFlexVit):
    """Padding has size 0, so no token attends to it. It comes behind an image's patches."""

    @classmethod
    def traits(cls, model: Module, rule: RotaryRule) -> frozenset[str]:
        class_token = getattr(model.get_submodule("embeds"), "cls_token", None) is not None
        rotary = None if getattr(model, "rope", None) is None else rule.name
        return traits_of(class_token=class_token, one_grid=False, rotary=rotary)

    def embedded(
        self, x: Tensor, patch_coord: Tensor | None = None, patch_valid: Tensor | None = None
    ) -> Embedded:
        """x: images [B, 3, H, W]; or patches [B, N, pixels], then patch_coord [B, N, 2] and patch_valid
        [B, N] say where they lie and which are no padding. Raises ConfigError where one of them lacks."""
        if (x.ndim != 4 or patch_coord is not None) and patch_valid is None:
            raise ConfigError(
                "a batch of patches has no mask; give patch_valid [B, N], which says what is no padding"
            )
        if patch_valid is not None and patch_coord is None:
            raise ConfigError("a batch of patches has no places; give patch_coord [B, N, 2], row and column")
        made = self._forward_embeds(x, patch_coord=patch_coord, patch_valid=patch_valid, attn_mask=None)
        tokens, prefix = made["patches"], self.num_prefix_tokens
        grid = (1, tokens.shape[1] - prefix)
        if patch_coord is None:
            grid = _grid(self.embeds, x)
        state = TokenState.start(tokens, grid, prefix)
        if patch_valid is not None:
            size = F.pad(patch_valid.to(state.size.dtype), (prefix, 0), value=1.0)
            state = replace(state, size=size, padded=True, places=patch_coord)
        if made["rope_embeds"] is None:
            return Embedded(state)
        rotary = timm_rotary(self, made["rope_embeds"], prefix)
        return Embedded(state, replace(rotary, counts=state.size) if state.padded else rotary)

    def forward(
        self,
        x: Tensor | dict[str, Any],
        patch_coord: Tensor | None = None,
        patch_valid: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """As timm's. Raises ConfigError for a batch of patches without patch_valid, and for a mask."""
        x, patch_coord, patch_valid, attn_mask = _given(x, patch_coord, patch_valid, attn_mask)
        features = self.forward_features(x, patch_coord, patch_valid, attn_mask)
        if isinstance(features, dict):
            return self.forward_head(features["patches"], patch_valid=patch_valid)
        return self.forward_head(features)

    def forward_features(
        self,
        patches: Tensor,
        patch_coord: Tensor | None = None,
        patch_valid: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor | dict[str, Any]:
        """As timm's: tokens [B, N, C], and for a batch of patches a dict of them and of patch_valid."""
        refuse_mask(attn_mask, False)
        tokens = unmerge_state(self.encode(patches, patch_coord, patch_valid).final)
        return tokens if patch_coord is None else {"patches": tokens, "patch_valid": patch_valid}

    def forward_intermediates(
        self,
        x: Tensor | dict[str, Any],
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        patch_coord: Tensor | None = None,
        patch_valid: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Any:
        """As timm's; see `MergingTimmModel.forward_intermediates`. Patches of several images have no common
        grid, so they are returned as NLC alone."""
        x, patch_coord, patch_valid, attn_mask = _given(x, patch_coord, patch_valid, attn_mask)
        refuse_mask(attn_mask, False)
        if patch_coord is not None and output_fmt != "NLC":
            raise ConfigError("patches of several images have no common grid; give output_fmt='NLC'")
        found = self._intermediates(
            (x, patch_coord, patch_valid),
            indices,
            norm,
            output_fmt,
            return_prefix_tokens,
            intermediates_only,
            output_dict,
        )
        return found | {"patch_valid": patch_valid} if output_dict and patch_valid is not None else found


def _given(
    x: Tensor | dict[str, Any], *rest: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The patches, their coordinates, which are valid, and a mask. A batch of timm's collator comes before
    the other arguments."""
    names = ("patch_coord", "patch_valid", "attn_mask")
    if not isinstance(x, dict):
        return x, *rest  # pyright: ignore[reportReturnType]
    return x["patches"], *(x.get(name, own) for name, own in zip(names, rest, strict=True))  # pyright: ignore[reportReturnType]


def _grid(embeds: NaFlexEmbeds, images: Tensor) -> tuple[int, int]:
    """Of whole patches: other images are padded, or refused by timm."""
    height, width = cast(tuple[int, int], embeds.patch_size)
    return -(-images.shape[-2] // height), -(-images.shape[-1] // width)
