"""Triton kernel of attention in which each key has a weight: one pass over the keys with a running softmax,
so that no table of all pairs is in memory. It has no backward pass.

B batch, H heads, N queries, M keys, D channels per head.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.kernels.choice import INTERPRETED
from pipeline.kernels.launch import block_of, launch


@triton.jit
def _product(a, b, total, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """total + a @ b in float32. WIDEN: Triton's interpreter multiplies no bfloat16."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def _over_tile(
    own, keys, values, of_key, scale, highest, total, mixed, PRECISION: tl.constexpr, WIDEN: tl.constexpr
):
    """highest, total and mixed of the queries `own`, with one tile of keys more. Exponentials are those of 2,
    which devices have."""
    nothing = tl.zeros([own.shape[0], keys.shape[0]], tl.float32)
    dots = _product(own, tl.trans(keys), nothing, PRECISION, WIDEN)
    logits = (dots * scale + of_key[None, :]) * 1.4426950408889634
    top = tl.maximum(highest, tl.max(logits, axis=1))
    shrink = tl.exp2(highest - top)
    shares = tl.exp2(logits - top[:, None])
    total = total * shrink + tl.sum(shares, axis=1)
    mixed = _product(shares.to(values.dtype), values, mixed * shrink[:, None], PRECISION, WIDEN)
    return top, total, mixed


@triton.jit(do_not_specialize=["num_queries", "num_keys"])
def _attend(
    q,
    k,
    v,
    weight,
    output,
    heads_per_image,
    num_queries,
    num_keys,
    num_channels,
    scale,
    q_batch_stride,
    q_head_stride,
    q_row_stride,
    k_batch_stride,
    k_head_stride,
    k_row_stride,
    v_batch_stride,
    v_head_stride,
    v_row_stride,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One program for each tile of queries of a head."""
    image = (tl.program_id(0) // heads_per_image).to(tl.int64)
    head = (tl.program_id(0) % heads_per_image).to(tl.int64)
    query = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.arange(0, BLOCK_D)
    is_query, is_channel = (query < num_queries)[:, None], (channel < num_channels)[None, :]
    own = tl.load(
        q + image * q_batch_stride + head * q_head_stride + query[:, None] * q_row_stride + channel[None, :],
        mask=is_query & is_channel,
        other=0.0,
    )
    k += image * k_batch_stride + head * k_head_stride
    v += image * v_batch_stride + head * v_head_stride
    weight += image * num_keys

    highest = tl.full([BLOCK_N], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    mixed = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for first in range(0, num_keys, BLOCK_M):
        key = first + tl.arange(0, BLOCK_M)
        is_key = key < num_keys
        here = is_key[:, None] & is_channel
        keys = tl.load(k + key[:, None] * k_row_stride + channel[None, :], mask=here, other=0.0)
        values = tl.load(v + key[:, None] * v_row_stride + channel[None, :], mask=here, other=0.0)
        of_key = tl.load(weight + key, mask=is_key, other=float("-inf"))
        highest, total, mixed = _over_tile(  # pyright: ignore[reportGeneralTypeIssues]
            own, keys, values, of_key, scale, highest, total, mixed, PRECISION, WIDEN
        )
    mixed = mixed / total[:, None]
    row = (image * num_queries + query[:, None]) * heads_per_image + head
    into = output + row * num_channels + channel[None, :]
    tl.store(into, mixed.to(output.dtype.element_ty), mask=is_query & is_channel)


def attend_by_weight(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, scale: float) -> Tensor:
    """softmax(scale * q k^T + weight of the key) v.

    q [B, H, N, D], k, v [B, H, M, D], in one of float32, bfloat16 and float16, weight [B, M]
    float32 -> [B, H, N, D], whose memory is that of [B, N, H, D]. Sums are in float32.
    """
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    batch, heads, num_queries, channels = q.shape
    output = q.new_empty(batch, num_queries, heads, channels)
    tile = 32 if q.dtype == torch.float32 else 64
    launch(
        _attend,
        (batch * heads, -(-num_queries // tile)),  # a grid has 65535 places in its second axis
        q,
        k,
        v,
        weight.contiguous(),
        output,
        heads,
        num_queries,
        k.shape[2],
        channels,
        scale,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        BLOCK_N=tile,
        BLOCK_M=tile,
        BLOCK_D=block_of(channels, 256),
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        WIDEN=INTERPRETED,
    )
    return output.transpose(1, 2)
