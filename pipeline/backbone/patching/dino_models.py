"""Models of DINOv2 and DINOv3 as torch hub has them, with merging. Their packages are not imported: models
are known by the names of their packages and classes. B batch, N patches + prefix, C channels.

The library's `get_intermediate_layers`, its heads and what is around a model read the unmerged positions, so
they stay as they are.
"""

# pyright: reportIncompatibleMethodOverride=false

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbone.classes import label
from pipeline.backbone.patching.merging_model import Embedded, MergingModel
from pipeline.backbone.patching.outer import MergingAround, only
from pipeline.backbone.patching.passed_by import own_calls
from pipeline.backbone.rotary import Rotary
from pipeline.backbone.run_blocks import block_numbers
from pipeline.merging.unmerge import unmerge_state
from pipeline.token_state import TokenState

Features = dict[str, Tensor | None]


class MergingDinoModel(MergingModel):
    """What both have."""

    WAY_OUT = (
        "; timm and transformers have the models of DINOv2 and DINOv3 too, and merging knows those "
        "(docs/models.md)"
    )
    REGISTERS: str
    """How `forward_features` calls the tokens of registers."""

    norm: nn.Module
    patch_embed: nn.Module
    prepare_tokens_with_masks: Callable[[Tensor, Tensor | None], Any]

    @classmethod
    def refuses(cls, model: nn.Module) -> str | None:
        needed = ("prepare_tokens_with_masks", "_get_intermediate_layers_not_chunked", "norm", "patch_embed")
        lacks = ", ".join(name for name in needed if not hasattr(model, name))
        if lacks:
            return f"it has no {lacks}; take the newest of torch hub (force_reload=True)"
        chunks = len(model.get_submodule("blocks")._modules) if _is_chunked(model) else 0
        places = [f"blocks.{chunk}" for chunk in range(chunks)] or ["blocks"]
        return next(filter(None, (own_calls(model, place) for place in places)), None)

    @classmethod
    def blocks_of(cls, model: nn.Module) -> Sequence[nn.Module]:
        """Also where they are in chunks, which have an Identity in the place of each block before them."""
        parts = list(model.get_submodule("blocks").children())
        if not _is_chunked(model):
            return parts
        return [part for chunk in parts for part in chunk.children() if not isinstance(part, nn.Identity)]

    @property
    def last_norm(self) -> Callable[[Tensor], Tensor]:
        return self.norm

    def forward_features(self, x: Any, masks: Any = None) -> Features | list[Features]:
        """As the library's, of images [B, 3, H, W] or a list of them: a dict of features, in which each
        position has the token that it merged into."""
        if isinstance(x, Tensor):
            return self._features(x, masks)
        return self.forward_features_list(x, masks or [None] * len(x))

    def forward_features_list(
        self, x_list: Sequence[Tensor], masks_list: Sequence[Tensor | None]
    ) -> list[Features]:
        return [self._features(x, masks) for x, masks in zip(x_list, masks_list, strict=True)]

    def _features(
        self, x: Tensor, masks: Tensor | None, prefix_norm: Callable[[Tensor], Tensor] | None = None
    ) -> Features:
        """prefix_norm: the last norm of the prefix, where it is another than that of `last_norm`."""
        output = self.encode(x, masks, taps=[len(self.merging_blocks) - 1])
        before, after = unmerge_state(output.taps[0]), unmerge_state(output.final)
        prefix = output.final.num_prefix
        first = after[:, :prefix] if prefix_norm is None else prefix_norm(before[:, :prefix])
        return {
            "x_norm_clstoken": first[:, 0],
            self.REGISTERS: first[:, 1:],
            "x_norm_patchtokens": after[:, prefix:],
            "x_prenorm": before,
            "masks": masks,
        }

    def _get_intermediate_layers_not_chunked(self, x: Tensor, n: int | Sequence[int] = 1) -> list[Tensor]:
        """Tokens [B, N, C] after the last n or the named blocks, unmerged by `merging.unmerge`."""
        taps = block_numbers(n, len(self.merging_blocks))
        output = self.encode(x, taps=taps, unmerge=self.merging.unmerge)
        return [unmerge_state(state) for state in output.taps]

    _get_intermediate_layers_chunked = _get_intermediate_layers_not_chunked


def _is_chunked(model: nn.Module) -> bool:
    return bool(getattr(model, "chunked_blocks", False))


class MergingDinov2(MergingDinoModel):
    """With and without registers."""

    REGISTERS = "x_norm_regtokens"

    patch_size: int

    def embedded(self, x: Tensor, masks: Tensor | None = None) -> Embedded:
        tokens = self.prepare_tokens_with_masks(x, masks)
        height, width = x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size
        return Embedded(TokenState.start(tokens, (height, width), tokens.shape[1] - height * width))


class MergingDinov3(MergingDinoModel):
    """With rotary positions, registers, and norms of the prefix alone."""

    REGISTERS = "x_storage_tokens"
    ROTARY = "rope_embed"

    rope_embed: nn.Module | None
    n_storage_tokens: int
    untie_cls_and_patch_norms: bool
    cls_norm: nn.Module
    local_cls_norm: nn.Module | None

    def embedded(self, x: Tensor, masks: Tensor | None = None) -> Embedded:
        tokens, (height, width) = self.prepare_tokens_with_masks(x, masks)
        state = TokenState.start(tokens, (height, width), tokens.shape[1] - height * width)
        if self.rope is None:
            return Embedded(state)
        count = len(self.merging_blocks) if self._draws_positions else 1
        tables = [torch.cat(self.rope(H=height, W=width), dim=-1) for _ in range(count)]
        return Embedded(state, Rotary.of(tables, state.num_prefix, True, self.merging.rotary))

    @property
    def rope(self) -> nn.Module | None:
        """As timm calls it, by which an adapter knows that the model has rotary positions."""
        return self.rope_embed

    @property
    def _draws_positions(self) -> bool:
        """Whether each block has its own positions: in training the library draws them for each."""
        names = ("shift_coords", "jitter_coords", "rescale_coords")
        return self.training and any(getattr(self.rope, name) is not None for name in names)

    @property
    def last_norm(self) -> Callable[[Tensor], Tensor]:
        return self._normed if self.untie_cls_and_patch_norms else self.norm

    def _normed(self, tokens: Tensor) -> Tensor:
        prefix = 1 + self.n_storage_tokens
        return torch.cat([self.cls_norm(tokens[:, :prefix]), self.norm(tokens[:, prefix:])], dim=1)

    def forward_features_list(
        self, x_list: Sequence[Tensor], masks_list: Sequence[Tensor | None]
    ) -> list[Features]:
        """In training the second of the list are local crops, whose class token may have its own norm."""
        local = self.local_cls_norm if self.training else None
        norms = [local if place == 1 else None for place in range(len(x_list))]
        return [self._features(*one) for one in zip(x_list, masks_list, norms, strict=True)]


MODELS: dict[str, type[MergingDinoModel]] = {
    "dinov2.DinoVisionTransformer": MergingDinov2,
    "dinov3.DinoVisionTransformer": MergingDinov3,
}
"""Label of a class -> the host of its models and of those of its subclasses."""
PACKAGES = tuple(name.partition(".")[0] + "." for name in MODELS)


def host_of_dino(model: nn.Module) -> type[MergingModel]:
    """The host of a model of the packages of DINOv2 and DINOv3. Raises ConfigError where there is none."""
    host = _host_of_backbone(model)
    if host is None:
        MergingAroundDino.tower_in(model)
    return host or MergingAroundDino


class MergingAroundDino(MergingAround):
    """Classifiers, and other heads around one backbone."""

    WAY_OUT = MergingDinoModel.WAY_OUT

    @classmethod
    def tower_in(cls, model: nn.Module) -> tuple[nn.Module, type[MergingModel]]:
        hosts = {part: host for part in model.modules() if (host := _host_of_backbone(part)) is not None}
        none = f"{label(type(model))} cannot merge: merging knows {', '.join(MODELS)} and models around one"
        tower = only(list(hosts), model, none + cls.WAY_OUT)
        return tower, hosts[tower]


def _host_of_backbone(model: nn.Module) -> type[MergingModel] | None:
    return next((MODELS[label(kind)] for kind in type(model).__mro__ if label(kind) in MODELS), None)
