"""LeMeViT as a backbone: stem, stages, last norms.

Patches and meta tokens travel as one state, whose prefix are the meta tokens. So unmerging gives the patches
alone, and what reads all tokens, such as a caption decoder, has both. B batch, M meta tokens, N patches, C
channels.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from timm.layers.weight_init import trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.backbone.backbone import Backbone, check_normalised
from pipeline.backbone.lemevit.block import BLOCKS, MetaBlock
from pipeline.backbone.lemevit.plan import StagePlan
from pipeline.backbone.lemevit.stages import StageEntry, conv_macs, state_of, stem
from pipeline.backbone.mac_count import MacCount
from pipeline.backbone.run_blocks import block_number
from pipeline.errors import ConfigError
from pipeline.merging.policy import MergePolicy
from pipeline.merging.schedule import ReductionSpec
from pipeline.merging.unmerge import start_unmerge
from pipeline.token_state import BackboneOutput, Carried, Grid, TokenState


class LeMeViT(Backbone):
    """LeMeViT (Jiang et al., IJCAI 2024). Blocks are counted over all stages, so the last ones of the stages
    (`plan.ends`) are the taps of a pyramid. The final state is behind the last norms, one of patches and one
    of meta tokens. It merges nothing."""

    never_merges = "its tokens are a dense grid, on which its convolutions work"

    def __init__(
        self,
        plan: StagePlan,
        policy: MergePolicy,
        *,
        img_size: tuple[int, int] = (224, 224),
        drop_path: float = 0.0,
        grad_checkpointing: bool = False,
    ):
        """Raises ConfigError where img_size does not divide by the stride of the last stage."""
        super().__init__()
        self.plan, self.policy, self.grad_checkpointing = plan, policy, grad_checkpointing
        self.in_chans, self.num_prefix, self.depth = plan.in_chans, plan.num_meta, sum(plan.depths)
        self.widths = tuple(plan.widths[stage] for stage in plan.stage_of_blocks)
        self.embed_dim, self.patch_size = self.widths[-1], (plan.strides[-1], plan.strides[-1])
        self.grid = self.grid_of_size(img_size)
        self.global_pool, self.pools_prefix, self.norm_after_pool = "both", False, False
        self.dist_token, self.build_fc_norm, self.build_attn_pool = None, nn.Identity, _no_pool
        self.meta_tokens = nn.Parameter(torch.randn(plan.num_meta, plan.widths[0]))
        self.stem = stem(plan.in_chans, plan.widths[0])
        self.entries = nn.ModuleList(_entries(plan))
        self.blocks = nn.ModuleList(_blocks(plan, drop_path))
        self.norm, self.norm_c = nn.BatchNorm1d(self.embed_dim), nn.LayerNorm(self.embed_dim)
        self.apply(_start)

    def forward(
        self,
        images: Tensor,
        *,
        reduction: ReductionSpec | None = None,
        taps: Collection[int] = (),
        unmerge: str | None = None,
        merge_points_from: int | None = None,
        carried: Mapping[str, Carried] | None = None,
        **merging: object,
    ) -> BackboneOutput:
        """images [B, in_chans, H, W] -> BackboneOutput. The arguments are those of `MergingViT.forward`. The
        reduction is checked; neither it nor `merging`, which are the others, changes anything. Raises
        ConfigError where H or W does not divide by the patch, for a tap that it does not have, and where
        points of merging are asked for or something is to travel with the tokens."""
        if merge_points_from is not None or carried:
            raise ConfigError(
                f"LeMeViT merges no tokens ({self.never_merges}), so there are no merge points, and nothing "
                "travels with tokens; give one of timm's ViTs"
            )
        taps = {block_number(tap, self.depth, f"taps are {tuple(taps)}; give blocks") for tap in taps}
        self._check(images)
        self.schedule(self.grid_of(images), reduction)
        state = state_of(self.meta_tokens.expand(images.shape[0], -1, -1), self.stem(images))
        state = start_unmerge(state, unmerge)
        tapped: list[TokenState] = []
        for number, block in enumerate(self.blocks):
            if number in self.plan.starts:
                # outside of checkpointing: running statistics would move twice
                state = self.entries[self.plan.starts.index(number)](state)
            state = self._passed(block, state)
            if number in taps:
                tapped.append(state)
        return BackboneOutput(self._normed(state), tuple(tapped))

    def layers(self) -> list[Sequence[nn.Module]]:
        """The way into a stage belongs to the stage's first block."""
        entries = {start: [entry] for start, entry in zip(self.plan.starts, self.entries, strict=True)}
        blocks = [[*entries.get(number, []), block] for number, block in enumerate(self.blocks)]
        return [*blocks, [self.norm, self.norm_c]]

    def macs(self, grid: Grid) -> MacCount:
        """Of each block with the way into its stage. Tokens are the patches after each block; meta tokens,
        which are always M, are not among them."""
        sizes = self._patches_of_stages(grid)
        first, meta = sizes[0], self.plan.num_meta
        embed = conv_macs(self.stem, 4 * first, first)
        blocks = [
            _of(block).macs(sizes[stage])
            for block, stage in zip(self.blocks, self.plan.stage_of_blocks, strict=True)
        ]
        for start, size, entry in zip(self.plan.starts, sizes, self.entries, strict=True):
            assert isinstance(entry, StageEntry)
            blocks[start] += entry.macs(size, meta)
        tokens = tuple(sizes[stage] for stage in self.plan.stage_of_blocks)
        return MacCount(embed + sum(blocks), embed, tuple(blocks), (0,) * self.depth, tokens)

    def tokens_at_start(self, grid: Grid) -> int:
        return self._patches_of_stages(grid)[0]

    def _patches_of_stages(self, grid: Grid) -> list[int]:
        """Patches in each stage, where the last one has a grid (h, w)."""
        sides = [self.plan.strides[-1] // stride for stride in self.plan.strides]
        return [grid[0] * side * grid[1] * side for side in sides]

    def _check(self, images: Tensor) -> None:
        """Raises ConfigError for bytes, for a wrong shape, and for a single patch at the end in training."""
        check_normalised(images)
        height, width = self.grid_of(images)
        if self.norm.training and images.shape[0] * height * width == 1:
            raise ConfigError(
                "norms of LeMeViT are over all patches of a batch, and in its last stage this one has a "
                "single patch; give more or larger images"
            )

    def _passed(self, block: nn.Module, state: TokenState) -> TokenState:
        if not (self.grad_checkpointing and torch.is_grad_enabled()):
            return block(state)
        passed = checkpoint(block, state, use_reentrant=False)
        assert isinstance(passed, TokenState)
        return passed

    def _normed(self, state: TokenState) -> TokenState:
        """The state behind the last norms."""
        meta, patches = state.tokens.tensor_split([self.num_prefix], dim=1)
        return state.with_tokens(torch.cat([self.norm_c(meta), self.norm(patches.mT).mT], dim=1))


def _entries(plan: StagePlan) -> list[StageEntry]:
    before = [plan.widths[0], *plan.widths[:-1]]
    sizes = zip(before, plan.widths, plan.halves, strict=True)
    return [StageEntry(narrow, width, halves=halves) for narrow, width, halves in sizes]


def _blocks(plan: StagePlan, drop_path: float) -> list[MetaBlock]:
    """Stochastic depth rises evenly from 0 to drop_path."""
    depth = sum(plan.depths)
    rates = [drop_path * number / max(1, depth - 1) for number in range(depth)]
    return [
        BLOCKS[plan.kinds[stage]](
            plan.kinds[stage],
            plan.widths[stage],
            plan.widths[stage] // plan.head_dim,
            plan.num_meta,
            mlp_ratio=plan.mlp_ratio,
            drop_path=rate,
            layer_scale=plan.layer_scale,
        )
        for stage, rate in zip(plan.stage_of_blocks, rates, strict=True)
    ]


def _start(module: nn.Module) -> None:
    """Linear layers start as in the authors' code; the rest as torch draws it."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def _of(block: nn.Module) -> MetaBlock:
    assert isinstance(block, MetaBlock)
    return block


def _no_pool() -> None:
    """It pools by no attention."""
