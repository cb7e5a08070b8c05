"""Pruning: which patches leave or are masked, and what unmerging reads in their place.

B batch, M tokens, P patches among them, K slots, r patches that leave, F channels of vectors.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.merging.matching import FAR, Split, padding_last, rank
from pipeline.merging.rows import take_rows
from pipeline.token_state import Assignment, TokenState, rows_of, widened


def prune(state: TokenState, importance: Tensor, vectors: Tensor, r: int) -> Assignment:
    """The r least important patches leave, and nothing of them arrives. Unmerging reads in the place of each
    the patch that stays and is most like it.

    importance [B, P]; vectors [B, M, F], whose cosine similarity tells which tokens are alike.
    """
    keep, source = divide(state, least_first(state, importance), r)
    slot = slots_of(state, keep, likeness(state, vectors, keep, source))
    part = state.size.new_zeros(source.shape)
    return Assignment(keep, source, slot, state.num_active, keep.shape[1], part=part)


def least_first(state: TokenState, importance: Tensor) -> Tensor:
    """[B, P] int64: the patches in the order in which they leave, the least important one [B, P] first, as
    positions among them. Where images have padding, see `rank`."""
    patches = Split(slice(state.num_prefix, state.num_active, 1), slice(0))
    best = -importance
    if state.quota is not None:
        best = best.masked_fill(state.size[:, patches.sources] == 0, -torch.inf)
    return rank(state, best, patches)


def divide(state: TokenState, ranked: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """keep [B, K] and source [B, r] of an Assignment in which the first r of the ranked patches [B, P] leave.
    Those that stay keep their order; padding is behind them."""
    (batch, num_tokens), prefix = state.size.shape, state.num_prefix
    assert num_tokens == state.num_active, "a hard merge removes tokens, so none is behind the live ones"
    rows = rows_of(batch, num_tokens, ranked.device)
    patches = ranked + rows[:, prefix : prefix + 1]
    kept = patches[:, r:].sort(dim=-1).values
    return padding_last(state, torch.cat([rows[:, :prefix], kept], dim=1)), patches[:, :r].contiguous()


def likeness(state: TokenState, vectors: Tensor, keep: Tensor, source: Tensor) -> Tensor:
    """Cosine similarity [B, r, K - prefix] of the patches that leave and those that stay, float32 or wider;
    that of padding is below all others. vectors [B, M, F], any float dtype."""
    unit, stays = F.normalize(widened(vectors), dim=-1), keep[:, state.num_prefix :]
    scores = take_rows(unit, source) @ take_rows(unit, stays).mT
    if state.quota is None:
        return scores
    return scores.masked_fill((take_rows(state.size, stays) == 0)[:, None], FAR)


def slots_of(state: TokenState, keep: Tensor, scores: Tensor) -> Tensor:
    """[B, r] int64: the slot of the patch that stays and has the highest score [B, r, K - prefix], as a row
    of [B, K]."""
    first = rows_of(keep.shape[0], keep.shape[1], keep.device)[:, state.num_prefix : state.num_prefix + 1]
    return scores.argmax(dim=-1) + first


def mask_out(state: TokenState, importance: Tensor, mask: Tensor, vectors: Tensor, r: int) -> Assignment:
    """No patch is removed, and each keeps its mask of its size. What is masked arrives nowhere. Unmerging
    reads in its place the patch that is not masked and is most like it.

    importance [B, P], mask [B, P] of 0 and 1 with gradient, both of all patches; vectors [B, M, F]. The r
    least important live patches lie behind the others afterwards, as if they had been removed.
    """
    (batch, num_tokens), prefix, live = state.size.shape, state.num_prefix, state.num_active
    rows = rows_of(batch, num_tokens, state.size.device)
    ranked = least_first(state, importance[:, : live - prefix])
    parts = (ranked[:, r:].sort(dim=-1).values, ranked[:, :r])
    order = torch.cat(parts, dim=1) + rows[:, prefix : prefix + 1]
    keep = torch.cat([rows[:, :prefix], order, rows[:, live:]], dim=1)
    source = rows[:, prefix:].contiguous()
    slot_of_row = torch.empty_like(rows.flatten()).scatter(0, keep.flatten(), rows.flatten())
    share = (1 - mask).to(state.size.dtype)
    return Assignment(
        keep,
        source,
        slot_of_row[source.gather(1, _most_alike(state, mask, vectors))],
        num_tokens,
        live - r,
        share=share,
        part=torch.zeros_like(share),
        masks=True,
    )


@torch.no_grad()
def _most_alike(state: TokenState, mask: Tensor, vectors: Tensor) -> Tensor:
    """[B, P] int64: of the patches that no mask hides, the one that is most like each patch, as a position
    among the patches."""
    prefix = state.num_prefix
    unit = F.normalize(widened(vectors[:, prefix:]), dim=-1)
    hidden = (mask == 0) | (state.size[:, prefix:] == 0)
    return (unit @ unit.mT).masked_fill(hidden[:, None], FAR).argmax(dim=-1)
