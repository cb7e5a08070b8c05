"""State dicts of mmseg's and mmpretrain's VisionTransformer under timm's keys, by the names of the tensors
alone."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.backbone.weights.block_names import renamed
from pipeline.backbone.weights.keys import plain_key

_BLOCK = re.compile(r"layers\.(\d+)\.(.+)")
_IN_BLOCK = {
    "ln1.": "norm1.",
    "attn.attn.in_proj_": "attn.qkv.",
    "attn.attn.out_proj.": "attn.proj.",
    "attn.qkv.": "attn.qkv.",
    "attn.proj.": "attn.proj.",
    "attn.gamma1.weight": "ls1.gamma",
    "ln2.": "norm2.",
    "ffn.layers.0.0.": "mlp.fc1.",
    "ffn.layers.1.": "mlp.fc2.",
    "ffn.w12.": "mlp.fc1.",
    "ffn.w3.": "mlp.fc2.",
    "ffn.gamma2.weight": "ls2.gamma",
}
_OUTSIDE = {
    "patch_embed.projection.": "patch_embed.proj.",
    "pre_norm.": "norm_pre.",
    "ln_pre.": "norm_pre.",
    "ln1.": "norm.",
    "ln2.": "fc_norm.",
    "head.layers.head.": "head.",
    "head.layers.head_dist.": "head_dist.",
}
"""The norm before the blocks is `ln_pre` in mmseg and `pre_norm` in mmpretrain, whose `ln2` is the norm after
average pooling."""
_PATCHES = "patch_embed.projection."


def openmmlab_weights(state_dict: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor] | None:
    """The tensors under timm's keys; None for another project's state dict. Unknown names stay as they are.

    mmseg's patch projection has no bias by default; the module's is then 0.
    """
    plain = {plain_key(key): value for key, value in state_dict.items()}
    if f"{_PATCHES}weight" not in plain:
        return None
    renamed = {_renamed(key): value for key, value in plain.items()}
    has_bias = any(name.endswith("patch_embed.proj.bias") for name, _ in module.named_parameters())
    no_bias = {"patch_embed.proj.bias": torch.zeros(len(plain[f"{_PATCHES}weight"]))} if has_bias else {}
    return no_bias | renamed


def _renamed(key: str) -> str:
    match = _BLOCK.fullmatch(key)
    name, table, place = (match[2], _IN_BLOCK, f"blocks.{match[1]}.") if match else (key, _OUTSIDE, "")
    found = renamed(name, table)
    return key if found is None else place + found
