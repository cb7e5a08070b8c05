"""timm's attention modules, with sizes and positions of merged tokens.

B batch, M tokens, C channels, H heads, G heads of keys and values, D channels of a head.
"""

from dataclasses import replace

import torch
from timm.layers.attention import Attention, AttentionRope
from timm.models.eva import EvaAttention
from torch import Tensor, nn

from pipeline.backbone.attention import EVERY, Mixed, Place, mix, projections
from pipeline.backbone.block import KeyLayer, key_layer_of
from pipeline.backbone.hosts.feed_forward import idle
from pipeline.backbone.packed_linear import can_pack, linear, linear_beside, linear_rows, linear_with
from pipeline.backbone.tubelets import KeysWithoutBias

TimmAttention = Attention | AttentionRope | EvaAttention
KNOWN = (Attention, AttentionRope, EvaAttention)


def refuses_attention(attn: nn.Module | None) -> str | None:
    """Why `attend` would compute this module wrongly; None where it would not."""
    if type(attn) in (*KNOWN, KeysWithoutBias):
        return None
    known = ", ".join(kind.__name__ for kind in KNOWN)
    return f"its attention is {type(attn).__name__}; merging knows {known}"


def parts_of_attention(attn: nn.Module) -> list[nn.Module]:
    """The module and its dropout of weights, which `attend` does not call."""
    return [attn, *(part for name, part in attn.named_children() if name == "attn_drop")]


def keys_of_attention(attn: TimmAttention) -> KeyLayer | str:
    """See `MergingBlock.key_layer`."""
    if not isinstance(attn.k_norm, nn.Identity):
        return "they pass a norm (k_norm)"
    if attn.qkv is None:
        return key_layer_of(attn.get_submodule("k_proj"))
    inner = attn.num_heads * attn.head_dim
    keys = key_layer_of(attn.qkv, slice(inner, 2 * inner))
    if isinstance(attn, EvaAttention) and attn.q_bias is not None and isinstance(keys, KeyLayer):
        assert attn.k_bias is not None
        return replace(keys, bias=attn.k_bias)
    return keys


def attend(attn: TimmAttention, x: Tensor, place: Place, plus: Tensor | None = None) -> tuple[Tensor, Mixed]:
    """The module's output for x [B, M, C], of the tokens that attend, plus `plus`, and what led to it. Where
    the place only looks, what stands for the output is x."""
    q, k, v, packed, beside = _projected(attn, x, place)
    if not (isinstance(attn.q_norm, nn.Identity) and isinstance(attn.k_norm, nn.Identity)):
        packed = None
    q, k = attn.q_norm(q), attn.k_norm(k)
    groups = attn.num_heads // k.shape[1]
    if groups > 1:
        k, v = (part.repeat_interleave(groups, dim=1) for part in (k, v))
    dropout = attn.attn_drop.p if attn.training else 0.0
    mixed = mix(q, k, v, place, scale=attn.scale, dropout=dropout, packed=packed)
    if place.looks:
        return x, mixed
    mixed = mixed if beside is None else replace(mixed, beside=beside)
    output = attn.norm(mixed.output.transpose(1, 2).flatten(2))
    if attn.gate is not None:
        output = output * attn.gate(x[:, : output.shape[1]]).sigmoid()
    if idle(attn.proj_drop):
        return linear(attn.proj, output, plus=plus), mixed
    output = attn.proj_drop(linear(attn.proj, output))
    return output if plus is None else plus + output, mixed


def _projected(
    attn: TimmAttention, x: Tensor, place: Place
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Queries [B, H, M, D], keys and values [B, G, M, D]; the tensor [3, B, H, M, D] in which they lie where
    they lie in one; and what `place` has beside them, where it is computed with them. See `projections`."""
    if attn.qkv is None:
        made = [
            linear(attn.get_submodule(name), x).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")[slice(*place.projected)]
        ]
        return *projections(made), None, None
    qkv, beside = _qkv(attn, x, place)
    first, stop = place.projected
    packed = qkv.view(*x.shape[:-1], stop - first, attn.num_heads, attn.head_dim)
    packed = packed.permute(2, 0, 3, 1, 4)
    return *projections(packed.unbind(0)), packed, beside


def _qkv(attn: TimmAttention, x: Tensor, place: Place) -> tuple[Tensor, Tensor | None]:
    """[B, M, 3 H D], or the part of it that `place` asks for, and what `place` has beside it. EVA has a bias
    of queries and values alone."""
    qkv, which = attn.qkv, place.projected
    assert qkv is not None
    if which != EVERY:
        width = attn.num_heads * attn.head_dim
        rows = slice(which[0] * width, which[1] * width)
        return _some_rows(attn, qkv, x, rows), None
    if not isinstance(attn, EvaAttention) or attn.q_bias is None:
        if place.beside is None or not can_pack(qkv, x):
            return linear(qkv, x), None
        return linear_beside(qkv, x, place.beside)
    bias = _eva_bias(attn)
    return (qkv(x) + bias if attn.qkv_bias_separate else linear_with(qkv, x, bias)), None


def _some_rows(attn: TimmAttention, qkv: nn.Linear, x: Tensor, rows: slice) -> Tensor:
    """[B, M, rows] of queries, keys and values."""
    if not isinstance(attn, EvaAttention) or attn.q_bias is None:
        return linear_rows(qkv, x, rows)
    if attn.qkv_bias_separate:
        return qkv(x)[..., rows] + _eva_bias(attn)[rows]
    return linear_with(qkv, x, _eva_bias(attn)[rows], rows)


def _eva_bias(attn: EvaAttention) -> Tensor:
    """[3 H D]: EVA has a bias of queries and values alone."""
    assert attn.q_bias is not None and attn.k_bias is not None and attn.v_bias is not None
    return torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
