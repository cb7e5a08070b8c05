"""The way of the tokens through merging blocks, the same in every model."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipeline.backbone.attention import Place
from pipeline.backbone.block import MergingBlock
from pipeline.backbone.rotary import Rotary
from pipeline.backbone.token_mixup import TokenMixer, TokenMixing
from pipeline.errors import ConfigError
from pipeline.merging.unmerge import harden, unmerge_state
from pipeline.token_state import PARTNER, BackboneOutput, MergePoint, Residual, TokenState

PROPORTIONAL_ATTENTION = ("always", "train", "never")


@dataclass(frozen=True)
class Pass:
    """One forward pass. schedule: r of each block. keep_rate: the share of its patches that an image with
    padding keeps in a block; None: it loses r. relaxed: merge differentiably. proportional: attend by size,
    once tokens merged. taps: blocks whose states are returned. points_from: first block whose MergePoint is
    returned, before which nothing has a gradient; None: of none. checkpointing: recompute the blocks in the
    backward pass. prefix_alone: nobody reads the patches of the last state. mixing: how tokens are mixed
    between blocks; None: they are not."""

    schedule: tuple[int, ...]
    keep_rate: float | None = None
    relaxed: bool = False
    proportional: bool = True
    task: str | None = None
    taps: Collection[int] = ()
    points_from: int | None = None
    checkpointing: bool = False
    prefix_alone: bool = False
    mixing: TokenMixing | None = None

    def leaves_patches(self, number: int) -> bool:
        """Whether the patches after a block are read by nobody."""
        last = number == len(self.schedule) - 1
        return last and self.prefix_alone and self.points_from is None and number not in self.taps


def check_proportional_attention(kind: str) -> None:
    """Raises ConfigError for another than PROPORTIONAL_ATTENTION."""
    if kind not in PROPORTIONAL_ATTENTION:
        raise ConfigError(
            f"proportional_attention is '{kind}'; give one of {', '.join(PROPORTIONAL_ATTENTION)}"
        )


def attends_by_size(kind: str, training: bool) -> bool:
    """Whether a pass attends by size. kind: one of PROPORTIONAL_ATTENTION."""
    return kind == "always" or (kind == "train" and training)


def encode(
    blocks: Iterable[MergingBlock],
    norm: Callable[[Tensor], Tensor],
    state: TokenState,
    how: Pass,
    *,
    rotary: Rotary | None = None,
    unmerge: str | None = None,
) -> BackboneOutput:
    """The states after all blocks and the model's last norm, and after the blocks in `taps`. The state was
    started for this way to unmerge (`pipeline.merging.unmerge.start_unmerge`)."""
    blocks = list(blocks)
    mixer = None if how.mixing is None else TokenMixer(how.mixing, how.schedule, blocks[0].policy)
    state, tapped, points = run_blocks(blocks, state, how, rotary, mixer)
    states = [normed(norm, state), *tapped]
    if unmerge == "copy":
        states = [harden(state) for state in states]
    mix = None if mixer is None else mixer.mix
    return BackboneOutput(states[0], tuple(states[1:]), tuple(points), mix)


def normed(norm: Callable[[Tensor], Tensor], state: TokenState) -> TokenState:
    """The state after the model's last norm, which each position passes with its residual."""
    after = state.with_tokens(norm(state.tokens))
    if state.residual is None or state.residual.grid is None:
        return after
    return replace(after, residual=Residual(norm(unmerge_state(state)), after.tokens))


def run_blocks(
    blocks: Iterable[MergingBlock],
    state: TokenState,
    how: Pass,
    rotary: Rotary | None = None,
    mixer: TokenMixer | None = None,
) -> tuple[TokenState, list[TokenState], list[MergePoint]]:
    """The state after the blocks, those after the blocks in `taps`, and the points of merging. Raises
    ConfigError under torch.jit.trace, which records other merges than those of the images."""
    if torch.jit.is_tracing() and any(how.schedule):  # pyright: ignore[reportPrivateImportUsage]
        raise ConfigError(
            "torch.jit.trace cannot record merges; use torch.export, torch.compile or "
            "torch.onnx.export(..., dynamo=True)"
        )
    tapped: list[TokenState] = []
    points: list[MergePoint] = []
    sized = False
    blocks = list(blocks)
    state = state if rotary is None else rotary.start(state)
    state = blocks[0].policy.start(state) if any(how.schedule) else state
    for i, (block, r) in enumerate(zip(blocks, how.schedule, strict=True)):
        observed = how.points_from is not None and i >= how.points_from
        averaged = rotary.averaged(state, i) if observed and rotary is not None else None
        probe = None if averaged is None else torch.zeros_like(averaged, requires_grad=True)
        if state.padded:
            state = replace(state, quota=_quota(state, r, how.keep_rate))
        counts = (state.size > 0).to(state.size.dtype) if state.padded else None
        masked = how.relaxed and block.policy.masks and any(how.schedule[:i])
        place = Place(
            state.size if sized or masked else counts,
            None if rotary is None else rotary.at(state, i, probe),
            exact=how.relaxed and block.policy.exact_attention,
            masks=masked,
            queries=state.num_prefix if how.leaves_patches(i) and _can_ask(block, state, r) else None,
            by_size=how.proportional and block.policy.resizes,
        )
        entered = state
        place = place if mixer is None else mixer.place(i, place)
        depth = i / len(how.schedule)
        options: dict[str, Any] = {"relaxed": how.relaxed, "task": how.task, "depth": depth}
        if observed:
            state = block(state, r, place, **options, tell=points.append)
            points[-1] = replace(points[-1], rope=averaged, rope_probe=probe)
        elif how.points_from is not None:
            with torch.no_grad():
                state = block(state, r, place, **options)
        elif how.checkpointing and torch.is_grad_enabled():
            state = cast(TokenState, checkpoint(block, state, r, place, **options, use_reentrant=False))
        else:
            state = block(state, r, place, **options)
        state = state if mixer is None else mixer.behind(i, entered, state)
        sized = sized or (how.proportional and r > 0 and block.policy.resizes)
        if i in how.taps:
            tapped.append(_told(block, state))
    return _told(blocks[-1], state), tapped, points


def _can_ask(block: MergingBlock, state: TokenState, r: int) -> bool:
    """Whether a block can compute the prefix alone: the state has nothing that would miss the rest, no merge
    before the attention changes what the prefix reads, and no part of the policy goes without a gradient."""
    first = block.policy.ahead or block.policy.at_entry or block.reducer is not None
    if block.recovery is not None or (r > 0 and first):
        return False
    alone = all(name in {*block.policy.carries, PARTNER} for name in state.carried)
    return block.can_ask() and not state.padded and alone and state.residual is None


def _told(block: MergingBlock, state: TokenState) -> TokenState:
    """The state without what its policy alone reads."""
    carries = block.policy.carries
    if not carries:
        return state
    return replace(state, carried={name: own for name, own in state.carried.items() if name not in carries})


def _quota(state: TokenState, r: int, keep_rate: float | None) -> Tensor:
    """[B] int64: how many of its patches an image loses in a block, as if it had no padding."""
    patches = (state.size[:, state.num_prefix : state.num_active] > 0).sum(dim=-1)
    wanted = torch.full_like(patches, r)
    if keep_rate is not None:
        wanted = (patches.double() * (1 - keep_rate)).round().long()
    return torch.minimum(wanted, patches // 2)


def block_number(number: int, depth: int, asked: str) -> int:
    """Number of a block, where -1 is the last. asked: begin of the message that refuses another one. Raises
    ConfigError."""
    if not -depth <= number < depth:
        raise ConfigError(f"{asked} of the {depth}, 0 to {depth - 1}, or -1 for the last and so on")
    return number % depth


def block_numbers(indices: int | Sequence[int] | None, depth: int) -> list[int]:
    """Blocks of which a library's methods return features, in order: all, the last few, or the named ones.
    Raises ConfigError."""
    if isinstance(indices, int):
        if indices < 1:
            raise ConfigError(f"the last {indices} of the {depth} blocks are asked for; give 1 or more")
        indices = range(-indices, 0)
    wanted = range(depth) if indices is None else indices
    return sorted({block_number(number, depth, f"blocks {list(wanted)} are asked for") for number in wanted})
