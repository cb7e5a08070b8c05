"""Triton kernels of hard matching: from a metric to the tokens that stay and the pairs that merge.

B batch, M tokens, F channels of the metric, Na sources, Nb destinations, r merges, K = M - r slots. The
scores [Na, Nb] are never in memory: each tile of sources passes over the destinations and keeps its best one.

A source's key is one int64: its best score (an int32 with the order of floats) in the high half, then its
position, inverted, then its target. So one sort of Na numbers ranks the sources, and of equal scores the
lower position comes first. A score that is not a number ranks behind all others.

bfloat16 and float16 are also numbers of TensorFloat-32, so their products lose nothing on tensor cores.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.kernels.launch import block_of, launch

MOST_SOURCES = 4096
"""Na up to which the sources of an image are sorted by one program."""
SOURCES_AT_ONCE = 128
"""Na up to which one launch does it all, with one program for each image."""
TILE_OF_SOURCES = 64
"""Else a program has so many, and a second launch ranks them."""


@triton.jit
def _inverse_norm(squares):
    """1 over the norm, as `F.normalize` bounds it."""
    return 1.0 / tl.maximum(tl.sqrt_rn(squares), 1e-12)


@triton.jit
def _pack(best, target, position):
    """The keys of sources; see the file."""
    bits = tl.where(best == 0.0, 0.0, best).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | ((0xFFFF - position).to(tl.int64) << 16) | target.to(tl.int64)


@triton.jit
def _keys_of(
    metric,
    position,
    first_source,
    first_destination,
    num_sources,
    num_destinations,
    num_channels,
    row_stride,
    channel_stride,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_F: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Keys [BLOCK_A] of the sources at these positions of an image, whose metric begins at `metric`."""
    best = tl.full([BLOCK_A], float("-inf"), tl.float32)
    target = tl.zeros([BLOCK_A], tl.int32)
    source_rows = metric + (first_source + 2 * position)[:, None] * row_stride
    is_source = (position < num_sources)[:, None]
    for begin in range(0, num_destinations, BLOCK_B):
        column = begin + tl.arange(0, BLOCK_B)
        destination_rows = metric + (first_destination + 2 * column)[:, None] * row_stride
        is_destination = (column < num_destinations)[:, None]
        dots = tl.zeros([BLOCK_A, BLOCK_B], tl.float32)
        of_sources = tl.zeros([BLOCK_A], tl.float32)
        of_destinations = tl.zeros([BLOCK_B], tl.float32)
        for first_channel in range(0, num_channels, BLOCK_F):
            channel = (first_channel + tl.arange(0, BLOCK_F))[None, :]
            is_channel = channel < num_channels
            a = tl.load(source_rows + channel * channel_stride, mask=is_source & is_channel, other=0.0)
            b = tl.load(
                destination_rows + channel * channel_stride, mask=is_destination & is_channel, other=0.0
            )
            a, b = a.to(tl.float32), b.to(tl.float32)
            dots = tl.dot(a, tl.trans(b), dots, input_precision=PRECISION)
            of_sources += tl.sum(a * a, axis=1)
            of_destinations += tl.sum(b * b, axis=1)
        scores = dots * _inverse_norm(of_sources)[:, None] * _inverse_norm(of_destinations)[None, :]
        counts = (column < num_destinations)[None, :] & (scores == scores)
        scores = tl.where(counts, scores, float("-inf"))
        top, place = tl.max(scores, axis=1, return_indices=True, return_indices_tie_break_left=True)
        better = top > best
        target = tl.where(better, begin + place, target)
        best = tl.where(better, top, best)
    return tl.where(position < num_sources, _pack(best, target, position), -0x7FFFFFFFFFFFFFFF)


@triton.jit
def _choose(
    keys,
    image,
    keep,
    source,
    slot,
    num_prefix,
    first_source,
    first_destination,
    num_sources,
    num_destinations,
    r,
    BLOCK_A: tl.constexpr,
):
    """Writes keep, source and slot of an image, from the keys [BLOCK_A] of all its sources."""
    num_tokens = num_prefix + num_sources + num_destinations
    num_slots = num_tokens - r
    row, first_slot = image * num_tokens, image * num_slots
    num_stay = num_prefix + num_sources - r
    place = tl.arange(0, BLOCK_A)
    ranked = tl.sort(keys, descending=True)
    merges = place < r
    position = 0xFFFF - ((ranked >> 16) & 0xFFFF)
    tl.store(source + image * r + place, row + first_source + 2 * position, mask=merges)
    tl.store(slot + image * r + place, first_slot + num_stay + (ranked & 0xFFFF), mask=merges)

    last = tl.min(tl.where(merges, ranked, 0x7FFFFFFFFFFFFFFF), axis=0)
    stays = (keys < last) & (place < num_sources)
    order = tl.cumsum(stays.to(tl.int32), axis=0) - 1
    into = keep + first_slot
    tl.store(into + num_prefix + order, row + first_source + 2 * place, mask=stays)
    for begin in range(0, num_destinations, BLOCK_A):
        other = begin + place
        there = other < num_destinations
        tl.store(into + num_stay + other, row + first_destination + 2 * other, mask=there)
    for begin in range(0, num_prefix, BLOCK_A):
        other = begin + place
        tl.store(into + other, row + other, mask=other < num_prefix)


_COUNTS = ["num_prefix", "first_source", "first_destination", "num_sources", "num_destinations", "r"]
"""They differ from block to block, so no kernel is compiled for their values."""


@triton.jit(do_not_specialize=_COUNTS)
def _match(
    metric,
    keep,
    source,
    slot,
    num_prefix,
    first_source,
    first_destination,
    num_sources,
    num_destinations,
    r,
    num_channels,
    image_stride,
    row_stride,
    channel_stride,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_F: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program for each image."""
    image = tl.program_id(0).to(tl.int64)
    keys = _keys_of(
        metric + image * image_stride,
        tl.arange(0, BLOCK_A),
        first_source,
        first_destination,
        num_sources,
        num_destinations,
        num_channels,
        row_stride,
        channel_stride,
        BLOCK_A,
        BLOCK_B,
        BLOCK_F,
        PRECISION,
    )
    _choose(
        keys,
        image,
        keep,
        source,
        slot,
        num_prefix,
        first_source,
        first_destination,
        num_sources,
        num_destinations,
        r,
        BLOCK_A,
    )


@triton.jit(do_not_specialize=["first_source", "first_destination", "num_sources", "num_destinations"])
def _write_keys(
    metric,
    keys,
    first_source,
    first_destination,
    num_sources,
    num_destinations,
    num_channels,
    image_stride,
    row_stride,
    channel_stride,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_F: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program for each image and tile of sources; keys [B, Na]."""
    image = tl.program_id(0).to(tl.int64)
    position = tl.program_id(1) * BLOCK_A + tl.arange(0, BLOCK_A)
    found = _keys_of(
        metric + image * image_stride,
        position,
        first_source,
        first_destination,
        num_sources,
        num_destinations,
        num_channels,
        row_stride,
        channel_stride,
        BLOCK_A,
        BLOCK_B,
        BLOCK_F,
        PRECISION,
    )
    tl.store(keys + image * num_sources + position, found, mask=position < num_sources)


@triton.jit(do_not_specialize=_COUNTS)
def _choose_by_keys(
    keys,
    keep,
    source,
    slot,
    num_prefix,
    first_source,
    first_destination,
    num_sources,
    num_destinations,
    r,
    BLOCK_A: tl.constexpr,
):
    """One program for each image; keys [B, Na]."""
    image = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK_A)
    found = tl.load(keys + image * num_sources + place, mask=place < num_sources, other=-0x7FFFFFFFFFFFFFFF)
    _choose(
        found,
        image,
        keep,
        source,
        slot,
        num_prefix,
        first_source,
        first_destination,
        num_sources,
        num_destinations,
        r,
        BLOCK_A,
    )


def match_rows(
    metric: Tensor, num_prefix: int, first_source: int, first_destination: int, r: int
) -> tuple[Tensor, Tensor, Tensor]:
    """keep [B, K], source [B, r] and slot [B, r] of an Assignment, by the cosine similarity of the metric
    [B, M, F]: float32, bfloat16 or float16. Sources and destinations are every other token from their first
    one on; Na <= MOST_SOURCES, 1 <= r <= Na."""
    batch, num_tokens, num_channels = metric.shape
    num_sources = (num_tokens - first_source + 1) // 2
    num_destinations = num_tokens - num_prefix - num_sources
    keep = torch.empty(batch, num_tokens - r, dtype=torch.int64, device=metric.device)
    source, slot = keep.new_empty(batch, r), keep.new_empty(batch, r)
    counts = (first_source, first_destination, num_sources, num_destinations)
    block = block_of(num_sources, MOST_SOURCES)
    tiles = {
        "BLOCK_B": 64,
        "BLOCK_F": block_of(num_channels, 64),
        "PRECISION": "ieee" if metric.dtype == torch.float32 else "tf32",
    }
    of_sources = {"BLOCK_A": block, "num_warps": 8 if block > 64 else 4}
    read, chosen = (num_channels, *metric.stride()), (keep, source, slot)
    if num_sources <= SOURCES_AT_ONCE:
        launch(_match, (batch,), metric, *chosen, num_prefix, *counts, r, *read, **tiles, **of_sources)
        return chosen
    keys = keep.new_empty(batch, num_sources)
    grid = (batch, -(-num_sources // TILE_OF_SOURCES))
    launch(_write_keys, grid, metric, keys, *counts, *read, BLOCK_A=TILE_OF_SOURCES, **tiles)
    launch(_choose_by_keys, (batch,), keys, *chosen, num_prefix, *counts, r, **of_sources)
    return chosen
