"""Multiply-accumulates (MACs) of a merging ViT, by formula. Papers often call them FLOPs; a FLOP counter
shows twice as many.

Counted: patch embedding, every linear layer, both products of attention, and what the policy needs: the
metric embedding, similarities of the pairs, and the logits of attention once more where it reads
`Evidence.received` or `entropy`. Not counted, as is usual: norms, activations, softmax, sorting and
gathering. Measured time includes them.
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
    """MACs of one image. `total` is the sum of embed (patch embedding), blocks and metric."""

    total: int
    embed: int
    blocks: tuple[int, ...]
    """MACs of attention and MLP of each block."""
    metric: tuple[int, ...]
    """MACs of what the policy needs in each block: metric embedding, similarities, logits of attention."""
    tokens: tuple[int, ...]
    """Tokens left after each block, prefix included."""

    @property
    def flops(self) -> int:
        return 2 * self.total


def count_macs(
    backbone: MergingViT, grid: tuple[int, int] | None = None, reduction: ReductionSpec | None = None
) -> MacCount:
    """MACs of one image in inference, without a head. grid: (h, w) patches; None: the backbone's own.
    reduction: None takes the backbone's. Raises ConfigError for a wrong reduction."""
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
    """r of each block: the most even schedule (entries differ by at most one, larger ones first) that costs
    at most `fraction` of the unmerged MACs, or at most `gmacs` * 10^9 MACs. Give one of the two.

    within: the share of the blocks, from the first one, that merge. Raises ConfigError where the largest
    reduction does not reach the target.
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
    """`total` removed tokens, distributed evenly over `depth` blocks, larger entries first."""
    return [total // depth + (i < total % depth) for i in range(depth)]


def _block_macs(block: MergingBlock, before: int, after: int) -> int:
    attn = block.attn
    linear = _linear_macs(attn) * before
    return linear + 2 * before * before * attn.attn_dim + _linear_macs(block.mlp) * after


def _metric_macs(block: MergingBlock, num_tokens: int, num_prefix: int, r: int) -> int:
    """MACs of what the policy needs: it compares the pairs once by each of the vectors. What it reads of the
    attention is summed up from logits that are computed once more."""
    needs, attn = block.policy.needs, block.attn
    if r <= 0:
        return 0
    macs = 0
    widths = {"tokens": attn.qkv.in_features, "keys": attn.head_dim}
    if block.metric is not None and "embedding" in needs:
        macs += num_tokens * block.metric.weight.numel()
        widths["embedding"] = block.metric.out_features
    if needs & {"received", "entropy"}:
        macs += num_tokens * num_tokens * attn.attn_dim
    num_sources, num_destinations = Split.by_parity(num_tokens, num_prefix).counts
    return macs + num_sources * num_destinations * sum(widths[name] for name in needs & widths.keys())


def _linear_macs(module: nn.Module) -> int:
    """MACs of all linear layers for one token."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
