"""Multiply-accumulates (MACs) of a merging ViT, by formula. Papers often call them FLOPs; a FLOP counter
shows twice as many.

Counted: patch embedding, every linear layer, both products of attention, and what the policy needs: the
metric embedding, similarities of the pairs, the logits of attention once more where it reads
these as evidence, a reducer and its recovery. Not counted, as is usual: norms, activations, softmax, sorting
and gathering. Measured time includes them.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.hybrid_embed import HybridEmbed
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.backbone.backbone import Backbone
from pipeline.backbone.block import MergingBlock
from pipeline.backbone.mac_count import MacCount
from pipeline.backbone.metric import EmbeddingPerTask, MetricEmbedding
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.backbone.vit import MergingViT
from pipeline.errors import ConfigError
from pipeline.merging.schedule import (
    ReductionSpec,
    mergeable,
    merging_blocks,
    tokens_per_block,
)
from pipeline.token_state import Grid

OF_ALL_QUERIES = ({"received", "entropy", "own_attention"}, {"mean_entropy"})
"""Evidence of the attention of all queries, in groups that are computed together."""


@dataclass(frozen=True)
class Counted:
    """What MACs are counted of: the blocks of a model, for an input of `patches` patches. embed: MACs before
    the first block. virtual: whether each patch keeps its own rotary position, for which attention stays as
    large as unmerged."""

    blocks: Sequence[MergingBlock]
    patches: int
    num_prefix: int
    embed: int
    virtual: bool = False

    def schedule(self, reduction: ReductionSpec) -> tuple[int, ...]:
        """r of each block. Raises ConfigError for a wrong reduction."""
        tokens = self.patches + self.num_prefix
        return self.blocks[0].policy.schedule(reduction, len(self.blocks), tokens, self.num_prefix)

    def macs(self, schedule: Sequence[int]) -> MacCount:
        """MACs of one image in inference, without a head. schedule: r of each block."""
        start = self.patches + self.num_prefix
        after = tokens_per_block(schedule, start)
        before = (start, *after[:-1])
        blocks = [
            _block_macs(block, n, m, start if self.virtual else n)
            for block, n, m in zip(self.blocks, before, after, strict=True)
        ]
        metric = [
            _metric_macs(block, n, self.num_prefix, r, merged=n < start)
            for block, n, r in zip(self.blocks, before, schedule, strict=True)
        ]
        if any(schedule):
            metric[0] += self.blocks[0].policy.start_macs(self.patches, self.blocks[0].width)
        total = self.embed + sum(blocks) + sum(metric)
        return MacCount(total, self.embed, tuple(blocks), tuple(metric), after)

    def macs_of_block(self, number: int, patches: int, r: int) -> int:
        """MACs of one block that so many patches enter and r leave, with what the policy needs. Those of all
        blocks add up, with `macs_before`, to those of the model."""
        block, before = self.blocks[number], patches + self.num_prefix
        attended = self.patches + self.num_prefix if self.virtual else before
        own = _block_macs(block, before, before - r, attended)
        return own + _metric_macs(block, before, self.num_prefix, r, merged=patches < self.patches)

    def macs_before(self, *, merges: bool) -> int:
        """MACs before the first block. merges: whether any block does."""
        first = self.blocks[0]
        return self.embed + (first.policy.start_macs(self.patches, first.width) if merges else 0)

    def reduction_for(
        self, fraction: float | None = None, *, gmacs: float | None = None, within: float = 1.0
    ) -> list[int]:
        """See `reduction_for_macs`."""
        merging = merging_blocks(len(self.blocks), within)

        def count(total: int) -> int:
            return self.macs(self.schedule(spread(total, merging))).total

        whole = count(0)
        goal = _goal(whole, fraction, gmacs)
        most = merging * mergeable(self.patches + self.num_prefix, self.num_prefix)
        total = bisect_left(range(most), True, key=lambda total: count(total) <= goal)
        if (reached := count(total)) > goal:
            raise ConfigError(
                f"{goal / 1e9:.4g} GMACs ({goal / whole:.0%} of the unmerged) cannot be reached: "
                f"merging all that can be leaves {reached / 1e9:.4g} ({reached / whole:.0%})"
            )
        return spread(total, merging)


def count_macs(
    backbone: Backbone, grid: Grid | None = None, reduction: ReductionSpec | None = None
) -> MacCount:
    """MACs of one image or clip in inference, without a head. grid: of patches; None: the backbone's own.
    reduction: None takes the backbone's. Raises ConfigError for a wrong reduction."""
    grid = grid or backbone.grid
    if not isinstance(backbone, MergingViT):
        backbone.schedule(grid, reduction)
        return backbone.macs(grid)
    return counted_vit(backbone, grid).macs(backbone.schedule(grid, reduction))


def reduction_for_macs(
    backbone: Backbone,
    fraction: float | None = None,
    grid: Grid | None = None,
    *,
    gmacs: float | None = None,
    within: float = 1.0,
) -> list[int]:
    """r of each block: the most even schedule (entries differ by at most one, larger ones first) that costs
    at most `fraction` of the unmerged MACs, or at most `gmacs` * 10^9 MACs. Give one of the two.

    within: the share of the blocks, from the first one, that merge. Raises ConfigError where the largest
    reduction does not reach the target.
    """
    return counted_vit(backbone, grid or backbone.grid).reduction_for(fraction, gmacs=gmacs, within=within)


def counted_model(model: MergingModel, *inputs: Any) -> Counted:
    """What MACs are counted of in a patched model, for inputs of one image, as its `encode` takes them. What
    comes before the blocks is counted in a pass."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        embedded = model.embedded(*inputs)
    state = embedded.state
    return Counted(
        model.merging_blocks,
        state.num_active - state.num_prefix,
        state.num_prefix,
        counter.get_total_flops() // 2,
        embedded.rotary is not None and model.merging.rotary.name == "virtual_unmerging",
    )


def counted_vit(backbone: Backbone, grid: Grid) -> Counted:
    """What MACs are counted of in a backbone, for inputs of a grid of patches. Raises ConfigError for one
    that merges nothing."""
    if not isinstance(backbone, MergingViT):
        what = type(backbone).__name__
        raise ConfigError(f"{what} merges no tokens, so no reduction reaches a number of MACs; give none")
    return Counted(
        list(backbone.blocks),
        math.prod(grid),
        backbone.num_prefix,
        _embed_macs(backbone, grid),
        backbone.rope is not None and backbone.rotary_rule.name == "virtual_unmerging",
    )


def _goal(whole: int, fraction: float | None, gmacs: float | None) -> float:
    if fraction is None and gmacs is not None:
        return gmacs * 1e9
    if fraction is None or gmacs is not None:
        raise ConfigError(
            "a schedule is solved for a fraction of the unmerged MACs or for gmacs: give one of the two"
        )
    if not 0 < fraction <= 1:
        raise ConfigError(f"target of {fraction} of the unmerged MACs: give a fraction in (0, 1]")
    return fraction * whole


def spread(total: int, depth: int) -> list[int]:
    """`total` removed tokens, distributed evenly over `depth` blocks, larger entries first."""
    return [total // depth + (i < total % depth) for i in range(depth)]


def _embed_macs(backbone: MergingViT, grid: Grid) -> int:
    """MACs of the patch embedding; those of a network before it are counted in a pass of one black image."""
    patch_embed = backbone.patch_embed
    weight = patch_embed.get_parameter("proj.weight")
    own = math.prod(grid) * weight.numel()
    if not isinstance(patch_embed, HybridEmbed):
        return own
    height, width = backbone.patch_size
    image = weight.new_zeros(1, 3, grid[0] * height, grid[1] * width)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        patch_embed.get_submodule("backbone")(image)
    return own + counter.get_total_flops() // 2


def _block_macs(block: MergingBlock, before: int, after: int, attended: int) -> int:
    """Of a block with `before` tokens at its entry and `after` at its end, whose attention is that of
    `attended`."""
    entering, pair, leaving = factors(block)
    if block.policy.at_entry:
        before = attended = after
    if block.policy.ahead and after < before:
        looking, spared = block.looking
        return looking * before + (entering - spared + leaving) * after + pair * attended * attended
    return entering * before + pair * attended * attended + leaving * after


def factors(block: MergingBlock) -> tuple[int, int, int]:
    """MACs of a block, without what the policy needs: for each token at its entry, for each pair of those
    that attend, and for each token at its end."""
    (first, second), (heads, dim) = block.halves, block.heads
    return _linear_macs(first), 2 * heads * dim, _linear_macs(second)


def _metric_macs(block: MergingBlock, num_tokens: int, num_prefix: int, r: int, *, merged: bool) -> int:
    """MACs of what the policy needs: the metric embedding, logits of the attention that are computed once
    more to be summed up, and what the policy says of itself. merged: an earlier block has merged."""
    policy, (heads, dim) = block.policy, block.heads
    if r <= 0:
        return 0
    macs = 0
    widths = {"tokens": block.width, "keys": dim}
    if isinstance(block.metric, MetricEmbedding | EmbeddingPerTask):
        macs += num_tokens * block.metric.weight.numel()
        widths["embedding"] = block.metric.out_features
    rows = num_tokens * sum(not policy.needs.isdisjoint(values) for values in OF_ALL_QUERIES)
    rows += "class_attention" in policy.needs
    macs += rows * num_tokens * heads * dim
    return macs + policy.macs(num_tokens, num_prefix, r, widths, merged=merged)


def _linear_macs(parts: Iterable[nn.Module]) -> int:
    """MACs of all linear layers for one token."""
    return sum(
        layer.in_features * layer.out_features  # an engine may have divided the weight
        for part in parts
        for layer in part.modules()
        if isinstance(layer, nn.Linear)
    )
