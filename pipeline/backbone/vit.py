"""A timm VisionTransformer or Eva, driven block by block so that tokens can merge between attention and MLP.
It reads images, or clips (`pipeline.backbone.tubelets`).

The parts of the timm model keep their names here, so that state-dict keys stay timm's. B batch, N patches +
prefix, M slots left, C channels.
"""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from timm.layers.hybrid_embed import HybridEmbed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_sincos import RotaryEmbeddingMixed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import pipeline.backbone.hosts  # noqa: F401 - fills HOSTS
from pipeline.backbone.backbone import Backbone, check_normalised
from pipeline.backbone.become import become_merging
from pipeline.backbone.block import MergingBlock
from pipeline.backbone.key_start import start_embeddings
from pipeline.backbone.metric import EmbeddingSpec
from pipeline.backbone.reducing import add_reducer
from pipeline.backbone.rotary import Rotary, RotaryRule
from pipeline.backbone.run_blocks import (
    Pass,
    attends_by_size,
    block_number,
    check_proportional_attention,
    encode,
)
from pipeline.backbone.token_mixup import TokenMixing
from pipeline.backbone.tubelets import TubeletEmbed, with_changes
from pipeline.errors import ConfigError
from pipeline.merging.policy import MergePolicy
from pipeline.merging.schedule import ReductionSpec
from pipeline.merging.traits import check_serves, traits_of
from pipeline.merging.unmerge import start_unmerge
from pipeline.token_state import CHANGE, BackboneOutput, Carried, Grid, TokenState

PREFIX_TOKENS = ("cls_token", "dist_token", "reg_token")


class Blocks(nn.ModuleList):
    """The backbone's blocks in order."""

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[MergingBlock]: ...


class MergingViT(Backbone):
    """The shared backbone. `forward` depends on its arguments and the weights alone, and leaves no state on
    the module."""

    blocks: Blocks  # pyright: ignore[reportIncompatibleVariableOverride]
    undecayed = (*PREFIX_TOKENS, "pos_embed", "rope.freqs")
    """Parameters of several dims without weight decay, as in timm."""
    pos_embed: nn.Parameter | None

    def __init__(
        self,
        vit: VisionTransformer | Eva,
        policy: MergePolicy,
        reduction: ReductionSpec = 0,
        *,
        proportional_attention: str = "always",
        grad_checkpointing: bool = False,
        embedding: EmbeddingSpec | None = None,
        rotary: RotaryRule | None = None,
    ):
        super().__init__()
        check_proportional_attention(proportional_attention)
        self.rotary_rule = rotary or RotaryRule()
        self.traits = traits_of_timm(vit, self.rotary_rule)
        """What it has that a policy may require, by names in TRAITS."""
        check_serves(policy, self.traits, _name_of(vit))
        self.patch_embed, self.pos_drop, self.norm_pre, self.norm = (
            vit.patch_embed,
            vit.pos_drop,
            vit.norm_pre,
            vit.norm,
        )
        for name in (*PREFIX_TOKENS, "pos_embed"):
            self.register_parameter(name, getattr(vit, name, None))
        self.rope: Any = getattr(vit, "rope", None)
        """timm's module of rotary positions, or None."""
        self._rotates_halves = any(getattr(part, "rotate_half", False) for part in vit.blocks.modules())
        spec = embedding or EmbeddingSpec()
        blocks = list(vit.blocks.children())
        self.blocks = Blocks(  # pyright: ignore[reportIncompatibleVariableOverride]
            become_merging(block, policy, spec, number / len(blocks)) for number, block in enumerate(blocks)
        )
        add_reducer(list(self.blocks), policy)
        start_embeddings(self.blocks)
        self.policy = policy
        self.proportional_attention = proportional_attention
        self.grad_checkpointing = grad_checkpointing
        self.no_embed_class: bool = vit.no_embed_class
        self.num_prefix: int = vit.num_prefix_tokens
        self.embed_dim: int = vit.embed_dim
        self.depth = len(self.blocks)
        self.widths = (self.embed_dim,) * self.depth
        self.grid: Grid = tuple(vit.patch_embed.grid_size)
        """Of the patches (h, w) of its images, or the tubelets (t, h, w) of its clips."""
        self.reads_clips = len(self.grid) == 3
        self.patch_size = patch_of(vit)
        self.global_pool: str = vit.global_pool
        self.pretrained_cfg: dict[str, Any] = getattr(vit, "pretrained_cfg", {})
        """What timm says of the model and its weights."""
        self.pools_prefix: bool = getattr(vit, "pool_include_prefix", vit.attn_pool is not None)
        """Whether pooling by attention reads the prefix too."""
        self.norm_after_pool = isinstance(vit.norm, nn.Identity)
        self.build_fc_norm: Callable[[], nn.Module] = partial(copy.deepcopy, vit.fc_norm)
        """Builds a copy of timm's norm between pooling and head, for a head to own."""
        self.build_attn_pool: Callable[[], nn.Module | None] = partial(copy.deepcopy, vit.attn_pool)
        """Builds a copy of timm's pooling by attention, for a head to own; None where the model has none."""
        self.set_reduction(reduction)

    def input_shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Shape of an image of (height, width) pixels, [3, H, W], or of a clip of as many frames as the
        backbone is made for, [T, 3, H, W]."""
        if not isinstance(self.patch_embed, TubeletEmbed):
            return super().input_shape(size)
        return self.grid[0] * self.patch_embed.tubelet, 3, *size

    def grid_of(self, images: Tensor) -> Grid:
        """Grid of patches of images [B, 3, H, W], or of clips [B, T, 3, H, W]. Raises ConfigError for another
        shape, and where H or W does not divide by the patch, or T by the tubelet."""
        shape, embed = images.shape, self.patch_embed
        if not isinstance(embed, TubeletEmbed):
            return super().grid_of(images)
        if len(shape) != 5 or shape[2] != 3 or 0 in shape[1:]:
            raise ConfigError(f"clips have the shape {list(shape)}; give [batch, frames, 3, height, width]")
        if shape[1] % embed.tubelet:
            raise ConfigError(f"clips of {shape[1]} frames do not divide into tubelets of {embed.tubelet}")
        return shape[1] // embed.tubelet, *self.grid_of_size((shape[-2], shape[-1]))[-2:]

    def grid_of_size(self, size: tuple[int, int]) -> Grid:
        """Grid of patches of images of (height, width) pixels, or of clips of as many frames as the backbone
        is made for. Raises ConfigError where the sides do not divide by the patch."""
        return *self.grid[:-2], *super().grid_of_size(size)

    def forward(
        self,
        images: Tensor,
        *,
        reduction: ReductionSpec | None = None,
        taps: Collection[int] = (),
        unmerge: str | None = None,
        relaxed: bool | None = None,
        training: bool | None = None,
        task: str | None = None,
        merge_points_from: int | None = None,
        carried: Mapping[str, Carried] | None = None,
        prefix_alone: bool = False,
        mixing: TokenMixing | None = None,
    ) -> BackboneOutput:
        """images [B, 3, H, W], or clips [B, T, 3, H, W] -> BackboneOutput.

        reduction: None takes that of `set_reduction`.
        taps: blocks whose states are returned too, in ascending order; -1 is the last.
        unmerge: how the states will be unmerged, one of `pipeline.merging.unmerge.UNMERGES`; None is `soft`.
        relaxed: merge differentiably; None does so in a pass of training where the policy can.
        training: whether this is a pass of training, where proportional_attention="train" counts sizes. None:
        the module's mode, which also decides on dropout and drop path; a frozen backbone is in evaluation
        mode in a pass of training.
        task: the one whose metric embedding decides, where tasks have their own.
        carried: what else travels with the tokens, prefix included.
        merge_points_from: first block whose MergePoint is returned, and those of all later blocks; -1 is the
        last. This needs gradients enabled; the blocks before it run without.
        prefix_alone: nobody reads the patches of the final state, which may then be left out. The last block
        merges none, where it can compute the prefix tokens alone.
        mixing: how tokens are mixed between blocks, in a pass of training; None: they are not.
        Raises ConfigError where H or W does not divide by the patch, or T by the tubelet, and for a tap or a
        first block that the backbone does not have.
        """
        taps = {block_number(tap, self.depth, f"taps are {tuple(taps)}; give blocks") for tap in taps}
        if merge_points_from is not None:
            asked = f"merge_points_from is {merge_points_from}; give a block"
            merge_points_from = block_number(merge_points_from, self.depth, asked)
        tokens, grid = self._embed(images)
        state = TokenState.start(tokens, grid, self.num_prefix)
        state = start_unmerge(replace(state, carried=dict(carried or {})), unmerge)
        schedule = self.schedule(grid, reduction)
        if CHANGE in self.policy.carries and any(schedule):
            assert isinstance(self.patch_embed, TubeletEmbed), "what requires clips is refused on images"
            state = with_changes(state, images, self.patch_embed.tubelet, self.patch_size)
        training = self.training if training is None else training
        how = Pass(
            schedule,
            relaxed=self.policy.supports_relaxed and (training if relaxed is None else relaxed),
            proportional=attends_by_size(self.proportional_attention, training),
            task=task,
            taps=taps,
            points_from=merge_points_from,
            checkpointing=self.grad_checkpointing,
            prefix_alone=prefix_alone,
            mixing=mixing,
        )
        return encode(self.blocks, self.norm, state, how, rotary=self._rotary(grid), unmerge=unmerge)

    def _embed(self, images: Tensor) -> tuple[Tensor, Grid]:
        """images [B, 3, H, W], or clips [B, T, 3, H, W] -> tokens [B, N, C] with positions, prefix first, and
        the grid of patches."""
        check_normalised(images)
        grid = self.grid_of(images)
        patches = _patches(self.patch_embed, images)
        prefix = [
            token.expand(patches.shape[0], -1, -1)
            for name in PREFIX_TOKENS
            if (token := getattr(self, name)) is not None
        ]
        if self.pos_embed is None:
            return self.norm_pre(self.pos_drop(torch.cat([*prefix, patches], dim=1))), grid
        embedded_prefix = 0 if self.no_embed_class else self.num_prefix
        position = resample_abs_pos_embed(
            self.pos_embed, new_size=list(grid), old_size=list(self.grid), num_prefix_tokens=embedded_prefix
        )
        if self.no_embed_class:
            tokens = torch.cat([*prefix, patches + position], dim=1)
        else:
            tokens = torch.cat([*prefix, patches], dim=1) + position
        return self.norm_pre(self.pos_drop(tokens)), grid

    def _rotary(self, grid: Grid) -> Rotary | None:
        """The rotary positions of a grid of patches; None where the model has none."""
        if self.rope is None:
            return None
        tables = self.rope.get_embed(shape=list(grid))
        each = tables.unbind(0) if isinstance(self.rope, RotaryEmbeddingMixed) else (tables,)
        return Rotary.of(each, self.num_prefix, self._rotates_halves, self.rotary_rule)


def _patches(patch_embed: nn.Module, images: Tensor) -> Tensor:
    """[B, h w, C] of images of any size, by timm's PatchEmbed, or by its HybridEmbed; [B, t h w, C] of clips,
    with their positions."""
    if isinstance(patch_embed, TubeletEmbed):
        return patch_embed(images)
    if isinstance(patch_embed, HybridEmbed):
        features = patch_embed.get_submodule("backbone")(images)
        images = features[-1] if isinstance(features, list | tuple) else features
    patches = patch_embed.get_submodule("proj")(images).flatten(2).mT
    return patches if isinstance(patch_embed, HybridEmbed) else patch_embed.get_submodule("norm")(patches)


def traits_of_timm(vit: nn.Module, rule: RotaryRule) -> frozenset[str]:
    """What a model of timm's has, by names in TRAITS, where its rotary positions would merge by this rule."""
    rotary = None if getattr(vit, "rope", None) is None else rule.name
    return traits_of(
        class_token=getattr(vit, "cls_token", None) is not None, rotary=rotary, times=times_of(vit)
    )


def times_of(vit: nn.Module) -> int | None:
    """Tubelets in time of the clips that a model is made for; None of images."""
    embed = getattr(vit, "patch_embed", None)
    return embed.grid_size[0] if isinstance(embed, TubeletEmbed) else None


def _name_of(vit: nn.Module) -> str:
    """How timm calls a model, where it says so."""
    return (getattr(vit, "pretrained_cfg", None) or {}).get("architecture") or type(vit).__name__


def patch_of(vit: VisionTransformer | Eva) -> tuple[int, int]:
    """Pixels (height, width) of a token, with the strides of a network before the patch embedding."""
    height, width = cast(tuple[int, int], vit.patch_embed.feat_ratio(as_scalar=False))
    return height, width
