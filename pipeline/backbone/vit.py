"""A timm VisionTransformer, driven block by block so that tokens can merge between attention and MLP.

The parts of the timm model keep their names here, so that state-dict keys stay timm's. B batch, N patches +
prefix, M slots left, C channels.
"""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from timm.layers.attention import Attention
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.backbone.attention import attend
from pipeline.backbone.metric import EmbeddingSpec
from pipeline.errors import ConfigError
from pipeline.merging.evidence import Evidence
from pipeline.merging.policy import MergePolicy, merge
from pipeline.merging.schedule import ReductionSpec, resolve_schedule
from pipeline.merging.unmerge import carry_residual, harden, start_unmerge, unmerge_state
from pipeline.parts import BASE
from pipeline.token_state import BackboneOutput, Carried, MergePoint, Residual, TokenState

PREFIX_TOKENS = ("cls_token", "dist_token", "reg_token")
PROPORTIONAL_ATTENTION = ("always", "train", "never")


class MergingBlock(nn.Module):
    """timm's pre-norm Block with a merge between attention and MLP."""

    norm1: nn.Module
    attn: Attention
    ls1: nn.Module
    drop_path1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    ls2: nn.Module
    drop_path2: nn.Module

    def __init__(self, block: nn.Module, policy: MergePolicy, embedding: EmbeddingSpec):
        super().__init__()
        for name, part in block.named_children():
            self.add_module(name, part)
        self.policy = policy
        dim: int = self.attn.qkv.in_features
        width = policy.embedding_dim(dim, self.attn.head_dim)
        self.metric = embedding.build(dim, width) if policy.learned else None

    def forward(
        self,
        state: TokenState,
        r: int,
        *,
        use_size: bool,
        relaxed: bool,
        task: str | None = None,
        tell: Callable[[MergePoint], None] | None = None,
    ) -> TokenState:
        """The state after the block, with r tokens less.

        use_size: attend by size, as an earlier block merged. relaxed: use the policy's differentiable merge.
        task: the one whose metric embedding decides, where tasks have their own. tell: called with the
        block's MergePoint. Raises ConfigError where that is asked of a policy without a metric.
        """
        x = self.norm1(state.tokens)
        exact, size = relaxed and self.policy.exact_attention, state.size if use_size else None
        mixed, q, k = attend(self.attn, x, size, exact=exact)
        state = state.with_tokens(state.tokens + self.drop_path1(self.ls1(mixed)))
        embed = None if self.metric is None else partial(self.metric, task=task)
        evidence = Evidence(x, q, k, size=size, scale=self.attn.scale, embed=embed)
        if tell is not None:
            point = self._observed(state, evidence)
            tell(point)
            state = carry_residual(state, state.with_tokens(state.tokens + point.probe))
        state = merge(self.policy, evidence, state, r, relaxed=relaxed)
        return state.with_tokens(state.tokens + self.drop_path2(self.ls2(self.mlp(self.norm2(state.tokens)))))

    def _observed(self, state: TokenState, evidence: Evidence) -> MergePoint:
        """The input of the merge, and a probe whose gradient can be taken even where the backbone is
        frozen."""
        metric = self.policy.metric(evidence)
        if metric is None:
            raise ConfigError(
                "merge points need a policy with a metric: give merging.policy='dtem' (or 'tome')"
            )
        return MergePoint(state, metric, torch.zeros_like(state.tokens, requires_grad=True))


class Blocks(nn.ModuleList):
    """The backbone's blocks in order."""

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[MergingBlock]: ...


class MergingViT(nn.Module):
    """The shared backbone. `forward` depends on its arguments and the weights alone, and leaves no state on
    the module."""

    part_kind = BASE
    undecayed = (*PREFIX_TOKENS, "pos_embed")
    """Parameters of several dims without weight decay, as in timm."""
    pos_embed: nn.Parameter | None

    def __init__(
        self,
        vit: VisionTransformer,
        policy: MergePolicy,
        reduction: ReductionSpec = 0,
        *,
        proportional_attention: str = "always",
        grad_checkpointing: bool = False,
        embedding: EmbeddingSpec | None = None,
    ):
        super().__init__()
        if proportional_attention not in PROPORTIONAL_ATTENTION:
            raise ConfigError(
                f"proportional_attention is '{proportional_attention}'; give one of "
                f"{', '.join(PROPORTIONAL_ATTENTION)}"
            )
        self.patch_embed, self.pos_drop, self.norm_pre, self.norm = (
            vit.patch_embed,
            vit.pos_drop,
            vit.norm_pre,
            vit.norm,
        )
        for name in (*PREFIX_TOKENS, "pos_embed"):
            self.register_parameter(name, getattr(vit, name, None))
        spec = embedding or EmbeddingSpec()
        self.blocks = Blocks(MergingBlock(block, policy, spec) for block in vit.blocks.children())
        self.policy = policy
        self.proportional_attention = proportional_attention
        self.grad_checkpointing = grad_checkpointing
        self.no_embed_class: bool = vit.no_embed_class
        self.num_prefix: int = vit.num_prefix_tokens
        self.embed_dim: int = vit.embed_dim
        self.depth = len(self.blocks)
        self.grid: tuple[int, int] = tuple(vit.patch_embed.grid_size)
        self.patch_size: tuple[int, int] = tuple(vit.patch_embed.patch_size)
        self.global_pool: str = vit.global_pool
        self.pretrained_cfg: dict[str, Any] = getattr(vit, "pretrained_cfg", {})
        """What timm says of the model and its weights."""
        self.norm_after_pool = isinstance(vit.norm, nn.Identity)
        self.build_fc_norm: Callable[[], nn.Module] = partial(copy.deepcopy, vit.fc_norm)
        """Builds a copy of timm's norm between pooling and head, for a head to own."""
        self.set_reduction(reduction)

    def set_reduction(self, reduction: ReductionSpec) -> None:
        """Sets the reduction that `forward` uses when it is given none. Raises ConfigError for a wrong
        one."""
        self.schedule(self.grid, reduction)
        self._reduction = reduction

    @property
    def reduction(self) -> ReductionSpec:
        """The reduction that `forward` uses when it is given none."""
        return self._reduction

    def schedule(self, grid: tuple[int, int], reduction: ReductionSpec | None = None) -> tuple[int, ...]:
        """r of each block for an input of grid (h, w) patches."""
        num_tokens = grid[0] * grid[1] + self.num_prefix
        schedule = resolve_schedule(
            self._reduction if reduction is None else reduction, self.depth, num_tokens, self.num_prefix
        )
        return schedule if self.policy.merges else (0,) * self.depth

    def grid_of(self, images: Tensor) -> tuple[int, int]:
        """Grid (h, w) of patches of images [B, 3, H, W]. Raises ConfigError for another shape, and where H or
        W does not divide by the patch."""
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            raise ConfigError(f"images have the shape {list(images.shape)}; give [batch, 3, height, width]")
        return self.grid_of_size((images.shape[-2], images.shape[-1]))

    def grid_of_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Grid (h, w) of patches of images of (height, width) pixels. Raises ConfigError where these do not
        divide by the patch."""
        (height, width), (patch_h, patch_w) = size, self.patch_size
        if height % patch_h or width % patch_w:
            near = f"{max(1, round(height / patch_h)) * patch_h}x{max(1, round(width / patch_w)) * patch_w}"
            raise ConfigError(
                f"input {height}x{width} does not divide by the patch {patch_h}x{patch_w}; nearest: {near}"
            )
        return height // patch_h, width // patch_w

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
    ) -> BackboneOutput:
        """images [B, 3, H, W] -> BackboneOutput.

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
        last. This needs gradients enabled.
        Raises ConfigError where H or W does not divide by the patch, and for a tap or a first block that the
        backbone does not have.
        """
        taps = {self._block_of(tap, f"taps are {tuple(taps)}; give blocks") for tap in taps}
        first = self.depth
        if merge_points_from is not None:
            first = self._block_of(
                merge_points_from, f"merge_points_from is {merge_points_from}; give a block"
            )
        training = self.training if training is None else training
        relaxed = self.policy.supports_relaxed and (training if relaxed is None else relaxed)
        proportional = self.proportional_attention == "always" or (
            self.proportional_attention == "train" and training
        )
        tokens, grid = self._embed(images)
        state = TokenState.start(tokens, grid, self.num_prefix)
        state = start_unmerge(replace(state, carried=dict(carried or {})), unmerge)
        tapped: list[TokenState] = []
        points: list[MergePoint] = []
        options: dict[str, Any] = {"relaxed": relaxed, "task": task, "use_size": False}
        for i, (block, r) in enumerate(zip(self.blocks, self.schedule(grid, reduction), strict=True)):
            if i >= first:
                state = block(state, r, **options, tell=points.append)
            elif self.grad_checkpointing and torch.is_grad_enabled():
                state = cast(TokenState, checkpoint(block, state, r, **options, use_reentrant=False))
            else:
                state = block(state, r, **options)
            options["use_size"] = proportional and (options["use_size"] or r > 0)
            if i in taps:
                tapped.append(state)
        states = [self._normed(state), *tapped]
        if unmerge == "copy":
            states = [harden(state) for state in states]
        return BackboneOutput(states[0], tuple(states[1:]), tuple(points))

    def _block_of(self, number: int, asked: str) -> int:
        """Number of a block, where -1 is the last. asked: begin of the message that refuses another one."""
        if not -self.depth <= number < self.depth:
            last = self.depth - 1
            raise ConfigError(f"{asked} of the {self.depth}, 0 to {last}, or -1 for the last and so on")
        return number % self.depth

    def _normed(self, state: TokenState) -> TokenState:
        """The state after the last norm, which each position passes with its residual."""
        after = state.with_tokens(self.norm(state.tokens))
        if state.residual is None or state.residual.grid is None:
            return after
        return replace(after, residual=Residual(self.norm(unmerge_state(state)), after.tokens))

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """images [B, 3, H, W] -> tokens [B, N, C] with positions, prefix first, and the grid of patches."""
        if not images.is_floating_point():
            raise ConfigError(
                f"images are {images.dtype}; a backbone reads normalised floats, (x / 255 - mean) / std, as "
                "`to` of a stream's batch makes them"
            )
        grid = self.grid_of(images)
        patches = self.patch_embed.proj(images).flatten(2).mT
        patches = self.patch_embed.norm(patches)
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
