"""Triton kernel that carries out a hard merge: one pass over the tokens, without atomics, so that a result
repeats to the last bit.

B batch, M tokens, K slots, r pairs of a source and a slot, C channels.
"""

import triton
import triton.language as tl
from torch import Tensor

from pipeline.kernels.launch import block_of, launch

SLOTS = 8
"""Of one program."""


@triton.jit(do_not_specialize=["num_slots", "num_pairs", "keep_stride", "source_stride", "slot_stride"])
def _move(
    values,
    size,
    keep,
    source,
    slot,
    means,
    sizes,
    num_slots,
    num_pairs,
    num_channels,
    keep_stride,
    source_stride,
    slot_stride,
    least,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program for each tile of an image's slots and of channels: the slots' own tokens, and those of the
    pairs that end here, in their order."""
    tiles = tl.cdiv(num_slots, BLOCK_K)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    place = (tl.program_id(0) % tiles) * BLOCK_K + tl.arange(0, BLOCK_K)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    is_slot, is_channel = place < num_slots, channel < num_channels
    here = is_slot[:, None] & is_channel[None, :]

    own = tl.load(keep + image * keep_stride + place, mask=is_slot, other=0)
    whole = tl.load(size + own, mask=is_slot, other=0.0)
    rows = tl.load(values + own[:, None] * num_channels + channel[None, :], mask=here, other=0.0)
    total = rows.to(tl.float32) * whole[:, None]
    first = image * num_slots + (tl.program_id(0) % tiles) * BLOCK_K
    for pair in range(num_pairs):
        receiver = tl.load(slot + image * slot_stride + pair) - first
        if (receiver >= 0) & (receiver < BLOCK_K):
            giver = tl.load(source + image * source_stride + pair)
            weight = tl.load(size + giver)
            row = tl.load(values + giver * num_channels + channel, mask=is_channel, other=0.0)
            receives = tl.arange(0, BLOCK_K) == receiver
            total += tl.where(receives[:, None], (row.to(tl.float32) * weight)[None, :], 0.0)
            whole += tl.where(receives, weight, 0.0)
    mean = tl.div_rn(total, tl.maximum(whole, least)[:, None] + tl.zeros_like(total))
    into = (image * num_slots + place)[:, None] * num_channels + channel[None, :]
    tl.store(means + into, mean.to(means.dtype.element_ty), mask=here)
    if tl.program_id(1) == 0:
        tl.store(sizes + image * num_slots + place, whole, mask=is_slot)


def move_rows(
    values: Tensor, size: Tensor, keep: Tensor, source: Tensor, slot: Tensor, least: float
) -> tuple[Tensor, Tensor]:
    """Means [B, K, C] of the values, weighted by size, in their dtype, and sizes [B, K], float32.

    values [B, M, C] in float32, bfloat16 or float16; size [B, M] float32; keep [B, K], source [B, r], slot
    [B, r] int64, as in an Assignment. least: bound of a divisor.
    """
    values, size = values.contiguous(), size.contiguous()
    keep, source, slot = (x if x.stride(1) == 1 else x.contiguous() for x in (keep, source, slot))
    (batch, num_slots), num_channels = keep.shape, values.shape[-1]
    means = values.new_empty(batch, num_slots, num_channels)
    sizes = size.new_empty(batch, num_slots)
    block = block_of(num_channels, 512)
    grid = (batch * -(-num_slots // SLOTS), -(-num_channels // block))
    arguments = (values, size, keep, source, slot, means, sizes, num_slots, source.shape[1], num_channels)
    strides = (keep.stride(0), source.stride(0), slot.stride(0))
    launch(_move, grid, *arguments, *strides, least, BLOCK_K=SLOTS, BLOCK_C=block)
    return means, sizes
