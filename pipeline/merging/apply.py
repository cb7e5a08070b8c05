"""Carries out a merge: moves everything that tokens carry, by an Assignment.

B batch, M tokens before, K slots after, E pairs of a source and a slot, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.merging.on_cpu import moved_on_cpu, moves_on_cpu
from pipeline.merging.on_gpu import moved
from pipeline.merging.rows import (
    SMALLEST_WEIGHT,
    add_rows,
    add_weighted_rows,
    of_largest,
    per_row,
    quotient,
    take_rows,
    without_autocast,
)
from pipeline.token_state import CARRY_RULES, Assignment, Carried, TokenState, rows_of, widened

SMALLEST = torch.finfo(torch.float32).eps
"""Least divisor of a mean, so that tokens of size 0 merge to a number and not to 0 / 0."""


def apply(state: TokenState, assignment: Assignment, tokens: Tensor | None = None) -> TokenState:
    """The state after a merge. A token that receives others becomes the mean, weighted by size, of itself
    and of what it receives; sizes add up. With `spread`, tokens add up too. Sizes and means are computed in
    float32 or wider, also under autocast. tokens [B, K, C]: those after the merge, where something else made
    them; what they carry moves all the same."""
    with without_autocast(state.tokens.device.type):
        move = _Move(state.size, assignment)
        if tokens is not None:
            size = move.size
        else:
            tokens, size = moved(
                state.tokens, move.counted, assignment, SMALLEST, lambda: move.tokens_and_sizes(state.tokens)
            )
        carried = {name: replace(item, values=move(item)) for name, item in state.carried.items()}
        return replace(
            state,
            tokens=tokens,
            size=size,
            num_active=assignment.num_active,
            merges=(*state.merges, assignment),
            carried=carried,
        )


def replay(values: Tensor, merges: Sequence[Assignment], size: Tensor | None = None) -> Tensor:
    """Values [B, N, ...] of the input's tokens, moved through all merges as what tokens carry by `mean`:
    [B, M, ...], in their dtype. size [B, N]: that of the input's tokens; None: 1."""
    with without_autocast(values.device.type):
        size = widened(values.new_ones(values.shape[:2])) if size is None else size
        for merge in merges:
            move = _Move(size, merge)
            values, size = move.mean(values), move.size
        return values


def sizes_after(merges: Sequence[Assignment], size: Tensor) -> list[Tensor]:
    """[B, K] after each of the merges: the sizes, from those of the input's tokens [B, N]. Differentiable in
    them and in shares."""
    found: list[Tensor] = []
    with without_autocast(size.device.type):
        for merge in merges:
            size = _Move(size, merge).size
            found.append(size)
    return found


@dataclass(frozen=True)
class _Weights:
    """size [B, K]: sizes after a merge. own [B, K], given [B, E]: weights in means, of the tokens that stay
    and of those that give. whole [B, K]: their sums."""

    size: Tensor
    own: Tensor
    given: Tensor
    whole: Tensor


class _Move:
    """One assignment, and the weight of each token in it. size [B, M]: sizes before the merge.
    counted [B, M]: what each of them counts in means by size, which is less where a part of it is dropped."""

    def __init__(self, size: Tensor, assignment: Assignment):
        self.assignment, self._before = assignment, size
        plain = assignment.part is None or (assignment.weight is not None and not assignment.keeps_norm)
        self.counted = size if plain else _counted(size, assignment)
        self._left = None if assignment.share is None else take_rows(share_left(assignment), assignment.keep)
        self._known: _Weights | None = None

    @property
    def size(self) -> Tensor:
        """[B, K]: sizes after the merge."""
        return self._weights.size

    @property
    def _weights(self) -> _Weights:
        """Computed when they are first read: where a kernel moves the tokens, nobody does."""
        if self._known is None:
            self._known = self._weigh()
        return self._known

    def tokens_and_sizes(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens [B, K, C] after the merge, from those before it [B, M, C], and the sizes [B, K]. Weights
        are computed anew: who times a second call would else find them known."""
        self._known = None
        if self.assignment.spread is not None:
            return self._added(widened(tokens)).to(tokens.dtype), self.size
        if moves_on_cpu(tokens, self.counted, self.assignment):
            return moved_on_cpu(tokens, self.counted, self.assignment, SMALLEST)
        means = self.mean(tokens)
        return self._stretched(means, tokens) if self.assignment.keeps_norm else means, self.size

    def _weigh(self) -> _Weights:
        assignment, least = self.assignment, SMALLEST
        if assignment.reads is not None:
            size = _held(assignment.reads, self._before)
            return _Weights(size, size, self._before, size.clamp(min=least))
        own, given = self._parts(self._before)
        size = whole = self._total(own, given)
        if assignment.weight is not None:
            least = SMALLEST_WEIGHT
            own, given = self._parts(of_largest(assignment.weight))
        # a token that stays and counts nothing, as it has given everything, keeps its value
        if assignment.weight is not None or assignment.share is not None:
            own = own.clamp(min=least)
            whole = self._total(own, given)
        return _Weights(size, own, given, whole.clamp(min=least))

    def __call__(self, item: Carried) -> Tensor:
        values, keep = item.values, self.assignment.keep
        if item.rule in ("mean", "sum") and not values.is_floating_point():
            raise ConfigError(
                f"what is carried by '{item.rule}' is {values.dtype}; give floats, or carry it by 'first'"
            )
        match item.rule:
            case "mean":
                return self.mean(values)
            case "sum":
                return self._added(widened(values)).to(values.dtype)
            case "first":
                return take_rows(values, keep)
            case "pairwise":
                column = (keep % self.assignment.num_tokens)[:, None].expand(-1, keep.shape[1], -1)
                return take_rows(values, keep).gather(2, column)
            case unknown:
                raise ConfigError(
                    f"something is carried by the rule '{unknown}'; give one of {', '.join(CARRY_RULES)}"
                )

    def mean(self, values: Tensor) -> Tensor:
        """[B, K, ...]: weighted means of the values [B, M, ...], in their dtype."""
        a, weights = self.assignment, self._weights
        exact = widened(values)
        if a.reads is not None:
            total = _held(a.reads, exact * per_row(self._before, exact))
        elif a.share is None:
            own, given = (per_row(part, values) for part in (weights.own, weights.given))
            total = self._total(take_rows(exact, a.keep) * own, take_rows(exact, a.source) * given)
        else:
            total = exact.new_zeros(*a.keep.shape, *exact.shape[2:])
            slots = rows_of(a.keep.shape[0], a.keep.shape[1], values.device)
            total = add_weighted_rows(total, slots, exact, a.keep, weights.own)
            total = add_weighted_rows(total, a.slot, exact, a.source, weights.given)
        return quotient(total, weights.whole).to(values.dtype)

    def _stretched(self, means: Tensor, tokens: Tensor) -> Tensor:
        """The means [B, K, C] of the slots that receive, with the largest norm of the tokens [B, M, C] in
        them. What counts 0 is left out, such as padding."""
        a, exact = self.assignment, widened(means)
        norms = torch.linalg.vector_norm(widened(tokens), dim=-1) * (self.counted > 0)
        own, given = (take_rows(norms, index).flatten() for index in (a.keep, a.source))
        largest = own.scatter_reduce(0, a.slot.flatten(), given, "amax")
        stretch = largest / torch.linalg.vector_norm(exact, dim=-1).flatten().clamp(min=SMALLEST)
        # a mean is at most as long as the longest; what is above 1 by rounding alone stays as it is
        stretch = stretch.where(stretch > 1 + 8 * SMALLEST, 1.0).view_as(a.keep)
        return (exact * per_row(stretch, exact)).to(means.dtype)

    def _added(self, values: Tensor) -> Tensor:
        """[B, K, ...]: values [B, M, ...] added up."""
        if self.assignment.reads is not None:
            return _held(self.assignment.reads, values)
        return self._total(*self._parts(values))

    def _parts(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The values that stay, [B, K, ...], and those that are given, [B, E, ...]."""
        a = self.assignment
        own, given = take_rows(values, a.keep), take_rows(values, a.source)
        if a.part is not None:
            given = given * per_row(a.part, given)
        if a.share is None or self._left is None:
            return own, given
        return own * per_row(self._left, own), given * per_row(a.share, given)

    def _total(self, own: Tensor, given: Tensor) -> Tensor:
        """What stays, with what it receives added."""
        spread = self.assignment.spread
        if spread is None:
            return add_rows(own, self.assignment.slot, given)
        flat = given.flatten(2) if given.ndim > 2 else given[..., None]
        return own + (spread.to(given.dtype) @ flat).view_as(own)


def _held(reads: Tensor, values: Tensor) -> Tensor:
    """[B, K, ...]: what slots hold of values [B, M, ...], each by how much it reads them."""
    reads = reads.to(values.dtype)
    if values.ndim == 2:
        return (reads * values[..., None]).sum(dim=1)
    return (reads.mT @ values.flatten(2)).reshape(*reads.shape[::2], *values.shape[2:])


def _counted(size: Tensor, assignment: Assignment) -> Tensor:
    """[B, M]: sizes [B, M], those of the sources times the part that arrives."""
    source, part = assignment.source.flatten(), assignment.part
    assert part is not None, "without parts all arrives"
    flat = size.flatten()
    return flat.index_copy(0, source, flat.index_select(0, source) * part.flatten()).view_as(size)


def share_left(assignment: Assignment) -> Tensor:
    """[B, M] in [0, 1]: the part of each token that it does not give away.

    Its gradient is that of 1 minus the shares, also where rounding takes it below 0.
    """
    assert assignment.share is not None, "without shares a source gives all"
    share = assignment.share
    whole = share.new_ones(share.shape[0], assignment.num_tokens)
    left = add_rows(whole, assignment.source, -share)
    return left + (left.clamp(0.0, 1.0) - left).detach()
