"""timm's VisionTransformer and Eva as they are, with merging. B batch, N patches + prefix, C channels."""

from collections.abc import Iterable, Sequence
from typing import Any

# pyright: reportIncompatibleMethodOverride=false
from timm.layers.pos_embed_sincos import RotaryEmbeddingMixed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pipeline.backbone.patching.merging_model import Embedded, MergingModel
from pipeline.backbone.patching.passed_by import own_calls
from pipeline.backbone.rotary import Rotary, RotaryRule
from pipeline.backbone.run_blocks import block_numbers
from pipeline.backbone.vit import traits_of_timm
from pipeline.errors import ConfigError
from pipeline.merging.unmerge import unmerge_state
from pipeline.token_state import TokenState


class MergingTimmModel(MergingModel):
    """What both classes share. Features are those of all positions, so the library's own head reads them: the
    mean over the patches of a token counts it by its size, and so does attention to them."""

    @classmethod
    def refuses(cls, model: nn.Module) -> str | None:
        if isinstance(getattr(model, "patch_drop", None), nn.Identity | None):
            return own_calls(model, "blocks")
        return (
            "it drops patches in training, so that the grid could not be restored; set patch_drop_rate to 0"
        )

    @classmethod
    def blocks_of(cls, model: nn.Module) -> Sequence[nn.Module]:
        return list(model.get_submodule("blocks").children())

    @classmethod
    def traits(cls, model: nn.Module, rule: RotaryRule) -> frozenset[str]:
        return traits_of_timm(model, rule)

    @property
    def last_norm(self) -> nn.Module:
        return self.get_submodule("norm")

    @property
    def checkpoints_blocks(self) -> bool:
        return bool(self.grad_checkpointing)

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Images [B, 3, H, W] -> tokens [B, N, C] after the last norm, each position with the token that it
        merged into. Raises ConfigError for a mask, which says nothing of merged tokens."""
        refuse_mask(attn_mask, is_causal)
        return unmerge_state(self.encode(x).final)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """As timm's: features after some blocks, [B, C, h, w] or [B, N - prefix, C], unmerged by
        `merging.unmerge`. stop_early saves nothing here."""
        refuse_mask(attn_mask, is_causal)
        return self._intermediates(
            (x,), indices, norm, output_fmt, return_prefix_tokens, intermediates_only, output_dict
        )

    def _intermediates(
        self,
        inputs: tuple[Any, ...],
        indices: int | Sequence[int] | None,
        norm: bool,
        output_fmt: str,
        return_prefix_tokens: bool,
        intermediates_only: bool,
        output_dict: bool,
    ) -> Any:
        """`forward_intermediates` for the inputs of `embedded`."""
        if output_fmt not in ("NCHW", "NLC"):
            raise ConfigError(f"output_fmt is '{output_fmt}'; give 'NCHW' or 'NLC'")
        taps = block_numbers(indices, len(self.merging_blocks))
        output = self.encode(*inputs, taps=taps, unmerge=self.merging.unmerge)
        final, prefix = unmerge_state(output.final), output.final.num_prefix
        tokens = [unmerge_state(state) for state in output.taps]
        tokens = [self.last_norm(own) for own in tokens] if norm else tokens
        features, before = [own[:, prefix:] for own in tokens], [own[:, :prefix] for own in tokens]
        if output_fmt == "NCHW":
            features = [own.mT.unflatten(-1, output.final.grid).contiguous() for own in features]
        with_prefix = return_prefix_tokens and prefix > 0
        if output_dict:
            found = {"image_intermediates": features}
            found |= {"image_intermediates_prefix": before} if with_prefix else {}
            return found if intermediates_only else found | {"image_features": final}
        listed = list(zip(features, before, strict=True)) if with_prefix else features
        return listed if intermediates_only else (final, listed)


class MergingVisionTransformer(MergingTimmModel, VisionTransformer):
    """timm's VisionTransformer and its subclasses."""

    def embedded(self, x: Tensor) -> Embedded:
        tokens = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        return Embedded(_start(self, tokens, x))


class MergingEva(MergingTimmModel, Eva):
    """timm's Eva."""

    def embedded(self, x: Tensor) -> Embedded:
        tokens, tables = self._pos_embed(self.patch_embed(x))
        state = _start(self, self.norm_pre(tokens), x)
        if tables is None:
            return Embedded(state)
        return Embedded(state, timm_rotary(self, tables, state.num_prefix))


def timm_rotary(model: MergingModel, tables: Tensor | Iterable[Tensor], num_prefix: int) -> Rotary:
    """The rotary positions of a model of timm's, from what it computes of them."""
    if isinstance(tables, Tensor):
        per_block = isinstance(model.get_submodule("rope"), RotaryEmbeddingMixed)
        tables = tables.unbind(0) if per_block else [tables]
    half = any(getattr(part, "rotate_half", False) for part in model.get_submodule("blocks").modules())
    return Rotary.of(list(tables), num_prefix, half, model.merging.rotary)


def _start(model: VisionTransformer | Eva, tokens: Tensor, images: Tensor) -> TokenState:
    height, width = model.patch_embed.dynamic_feat_size((images.shape[-2], images.shape[-1]))
    return TokenState.start(tokens, (height, width), model.num_prefix_tokens)


def refuse_mask(attn_mask: Tensor | None, is_causal: bool) -> None:
    if attn_mask is not None or is_causal:
        raise ConfigError(
            "a mask of attention says nothing of merged tokens; leave attn_mask and is_causal out, or "
            "unpatch the model"
        )
