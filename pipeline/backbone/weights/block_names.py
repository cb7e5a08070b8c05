"""Names of the tensors of a block: each library has its own, and here they become those of timm's Block."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.backbone.weights.joined import joined

IN_LAYER = {
    "layernorm_before.": "norm1.",
    "layer_norm1.": "norm1.",
    "norm1.": "norm1.",
    "attention.attention.query.": "attn.q_proj.",
    "attention.attention.key.": "attn.k_proj.",
    "attention.attention.value.": "attn.v_proj.",
    "attention.attention.q_bias": "attn.q_bias",
    "attention.attention.v_bias": "attn.v_bias",
    "attention.output.dense.": "attn.proj.",
    "attention.o_proj.": "attn.proj.",
    "attention.": "attn.",
    "self_attn.out_proj.": "attn.proj.",
    "self_attn.": "attn.",
    "layer_scale1.lambda1": "ls1.gamma",
    "layernorm_after.": "norm2.",
    "layer_norm2.": "norm2.",
    "norm2.": "norm2.",
    "intermediate.dense.": "mlp.fc1.",
    "output.dense.": "mlp.fc2.",
    "mlp.weights_in.": "mlp.fc1.",
    "mlp.weights_out.": "mlp.fc2.",
    "mlp.down_proj.": "mlp.fc2.",
    "mlp.": "mlp.",
    "layer_scale2.lambda1": "ls2.gamma",
}
"""Begin of a name in a layer of transformers -> in timm's Block. Layers that timm joins are apart."""
_ELSEWHERE = {
    "gamma_1": "ls1.gamma",
    "gamma_2": "ls2.gamma",
    "mlp.fc1_g.": "mlp.gate_proj.",
    "mlp.fc1_x.": "mlp.up_proj.",
    "mlp.w12.": "mlp.fc1.",
    "mlp.w1.": "mlp.gate_proj.",
    "mlp.w2.": "mlp.up_proj.",
    "mlp.w3.": "mlp.fc2.",
    "mlp.ffn_ln.": "mlp.norm.",
    "attn.inner_attn_ln.": "attn.norm.",
}
"""The same for timm's EvaBlock, and for the blocks of the repositories of DINOv2, DINOv3 and EVA02."""


def renamed(name: str, table: Mapping[str, str]) -> str | None:
    """The name with another begin, by the first one of the table that it has; None where it has none."""
    return next(
        (ours + name.removeprefix(begin) for begin, ours in table.items() if name.startswith(begin)), None
    )


def as_in_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a block of any library by the names, and in the layers, that timm's Block has: equal for
    equal weights. tensors: by their names in the block. A bias of zeros is left out, as some libraries have
    it and some do not. Unknown names stay as they are."""
    table = _ELSEWHERE | IN_LAYER
    found = joined({renamed(name, table) or name: tensor for name, tensor in tensors.items()})
    if "attn.q_bias" in found:
        q, v = found.pop("attn.q_bias"), found.pop("attn.v_bias")
        found["attn.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    if (mask := found.pop("attn.qkv.bias_mask", None)) is not None:
        found["attn.qkv.bias"] = found["attn.qkv.bias"].where(mask != 0, 0)
    return {name: value for name, value in found.items() if not name.endswith("bias") or bool(value.any())}
