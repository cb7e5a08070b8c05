"""Merges that are no matching of two halves: every patch may be compared with every other, and names the one
whose group it joins.

B batch, M tokens, n = M - num_prefix patches, K slots, r merges. Positions are those among the patches.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.token_state import Assignment, TokenState, rows_of, widened


def positions(state: TokenState) -> Tensor:
    """[B, n] int64: of each patch its own position, by which it joins nobody."""
    batch, num_tokens = state.size.shape
    own = torch.arange(num_tokens - state.num_prefix, device=state.size.device)
    return own.expand(batch, -1)


def real(state: TokenState) -> Tensor | None:
    """[B, n] bool: which patches are no padding; None where none is."""
    return None if state.quota is None else state.patch_size > 0


def likeness(vectors: Tensor, state: TokenState) -> Tensor:
    """Cosine similarity [B, n, n] of all patches with each other, float32 or wider. vectors [B, M, F]."""
    unit = F.normalize(widened(vectors[:, state.num_prefix :]), dim=-1)
    return unit @ unit.mT


def join(state: TokenState, receiver: Tensor, r: int) -> Assignment:
    """The merge in which patches join the groups of others.

    receiver [B, n] int64: the position of the patch that each one joins, which stays; its own where it stays.
    r patches of each image join another; of an image with padding as many as `state.quota` says, and padding
    goes for the rest. The new order is the old one of what stays, padding behind it.
    """
    batch, num_tokens = state.size.shape
    assert num_tokens == state.num_active, "a hard merge removes tokens, so none is behind the live ones"
    prefix, num_slots = state.num_prefix, num_tokens - r
    leaves = (receiver != positions(state)).int()
    if state.quota is not None:
        leaves = 2 * leaves + (state.patch_size == 0)
    order = leaves.argsort(dim=-1, stable=True)
    stays, gone = order[:, : num_slots - prefix], order[:, num_slots - prefix :]
    first = rows_of(batch, num_tokens, receiver.device)[:, :1]
    own = torch.arange(prefix, num_slots, device=receiver.device).expand(batch, -1)
    # padding that goes without a receiver goes to the last slot
    slot_of = torch.full_like(order, num_slots - 1).scatter(1, stays, own)
    head = torch.arange(prefix, device=receiver.device).expand(batch, -1)
    return Assignment(
        keep=first + torch.cat([head, prefix + stays], dim=1),
        source=first + prefix + gone,
        slot=rows_of(batch, num_slots, receiver.device)[:, :1] + slot_of.gather(1, receiver.gather(1, gone)),
        num_tokens=num_tokens,
        num_active=num_slots,
    )
