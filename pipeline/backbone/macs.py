"""Multiply-accumulates of a merging ViT, by formula. What papers call GFLOPs are these MACs; a FLOP counter
shows twice as many.

Counted: patch embedding, every linear layer, both products of attention, the metric embedding and its
similarities. Not counted, as nowhere in the field: norms, activations, softmax, sorting and gathering;
measured time holds them.
"""

from bisect import bisect_left
from dataclasses import dataclass

from torch import nn

from pipeline.backbone.vit import MergingBlock, MergingViT
from pipeline.errors import ConfigError
from pipeline.merging.matching import Split
from pipeline.merging.schedule import ReductionSpec, mergeable, merging_blocks, tokens_per_block


@dataclass(frozen=True)
class MacCount:
    """MACs of one image. `total` holds all the others."""

    total: int
    embed: int
    blocks: tuple[int, ...]
    """Per block: attention and MLP."""
    metric: tuple[int, ...]
    """Per block: metric embedding and similarities."""
    tokens: tuple[int, ...]
    """Tokens left after each block, prefix included."""

    @property
    def flops(self) -> int:
        return 2 * self.total


def count_macs(
    backbone: MergingViT, grid: tuple[int, int] | None = None, reduction: ReductionSpec | None = None
) -> MacCount:
    """MACs of one image in inference, the head excluded. grid: (h, w) patches; None: the
    backbone's own."""
    height, width = grid = grid or backbone.grid
    schedule = backbone.schedule(grid, reduction)
    patches = height * width
    start = patches + backbone.num_prefix
    after = tokens_per_block(schedule, start)
    before = (start, *after[:-1])
    blocks = [_block_macs(block, n, m) for block, n, m in zip(backbone.blocks, before, after, strict=True)]
    metric = [
        _metric_macs(block, n, backbone.num_prefix, r)
        for block, n, r in zip(backbone.blocks, before, schedule, strict=True)
    ]
    embed = patches * backbone.patch_embed.proj.weight.numel()
    return MacCount(embed + sum(blocks) + sum(metric), embed, tuple(blocks), tuple(metric), after)


def reduction_for_macs(
    backbone: MergingViT,
    fraction: float | None = None,
    grid: tuple[int, int] | None = None,
    *,
    gmacs: float | None = None,
    within: float = 1.0,
) -> list[int]:
    """The most even schedule (entries differ by at most one, the larger first) that costs at most `fraction`
    of the unmerged MACs, or at most `gmacs` * 10^9 MACs: give one of the two.

    within: the share of the blocks, from the first one, that merge. Raises ConfigError where merging as much
    as can be does not reach it.
    """
    merging = merging_blocks(backbone.depth, within)
    whole = count_macs(backbone, grid, 0).total
    goal = _goal(whole, fraction, gmacs)
    height, width = grid or backbone.grid
    most = merging * mergeable(height * width + backbone.num_prefix, backbone.num_prefix)
    total = bisect_left(
        range(most), True, key=lambda total: count_macs(backbone, grid, spread(total, merging)).total <= goal
    )
    schedule = spread(total, merging)
    reached = count_macs(backbone, grid, schedule).total
    if reached > goal:
        raise ConfigError(
            f"{goal / 1e9:.4g} GMACs ({goal / whole:.0%} of the unmerged) cannot be reached: "
            f"merging all that can be leaves {reached / 1e9:.4g} ({reached / whole:.0%})"
        )
    return schedule


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
    """`total` removed tokens over `depth` blocks as evenly as can be, larger entries first."""
    return [total // depth + (i < total % depth) for i in range(depth)]


def _block_macs(block: MergingBlock, before: int, after: int) -> int:
    attn = block.attn
    linear = _linear_macs(attn) * before
    return linear + 2 * before * before * attn.attn_dim + _linear_macs(block.mlp) * after


def _metric_macs(block: MergingBlock, num_tokens: int, num_prefix: int, r: int) -> int:
    if r <= 0 or not block.policy.needs:
        return 0
    num_sources, num_destinations = Split.by_parity(num_tokens, num_prefix).counts
    pairs = num_sources * num_destinations
    if block.metric is None:
        return pairs * block.attn.head_dim
    return num_tokens * block.metric.weight.numel() + pairs * block.metric.out_features


def _linear_macs(module: nn.Module) -> int:
    """Per token."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
