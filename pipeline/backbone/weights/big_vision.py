"""Weights of Google's JAX projects under timm's keys: vision_transformer (ViT, AugReg) and big_vision
(SigLIP). B blocks, H heads, D channels of a head, C channels."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from pipeline.backbone.weights.joined import joined

_PREFIXES = ("opt/target/", "params/img/", "params/", "")
"""What stands before the names of the image model."""
_PATCHES = "embedding/kernel"
_STACKED = "Transformer/encoderblock/"
_NAMES = {
    r"embedding/": "patch_embed.proj.",
    r"cls$": "cls_token",
    r"(?:Transformer/posembed_input/)?pos_embedding$": "pos_embed",
    r"Transformer/encoderblock_(\d+)/LayerNorm_0/": r"blocks.\1.norm1.",
    r"Transformer/encoderblock_(\d+)/LayerNorm_[12]/": r"blocks.\1.norm2.",
    r"Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_[01]/": r"blocks.\1.attn.",
    r"Transformer/encoderblock_(\d+)/MlpBlock_[03]/": r"blocks.\1.mlp.",
    r"Transformer/encoder_norm/": "norm.",
    r"MAPHead_0/probe$": "attn_pool.latent",
    r"MAPHead_0/LayerNorm_0/": "attn_pool.norm.",
    r"MAPHead_0/MultiHeadDotProductAttention_0/query/": "attn_pool.q.",
    r"MAPHead_0/MultiHeadDotProductAttention_0/": "attn_pool.",
    r"MAPHead_0/MlpBlock_0/": "attn_pool.mlp.",
    r"head/": "head.",
}
_PARTS = {
    "query/": "q_proj.",
    "key/": "k_proj.",
    "value/": "v_proj.",
    "out/": "proj.",
    "Dense_0/": "fc1.",
    "Dense_1/": "fc2.",
    "kernel": "weight",
    "scale": "weight",
}
_QUERIES = re.compile(r"/(?:query|key|value)/(kernel|bias)$")


def big_vision_weights(state_dict: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor] | None:
    """The tensors under timm's keys; None for another project's. Blocks may be stacked, [B, ...]. Unknown
    names stay as they are."""
    prefix = next((prefix for prefix in _PREFIXES if prefix + _PATCHES in state_dict), None)
    if prefix is None:
        return None
    found: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        inside = key.removeprefix(prefix)
        if inside.startswith(_STACKED):
            rest = inside.removeprefix(_STACKED)
            for number, own in enumerate(value):
                name = f"Transformer/encoderblock_{number}/{rest}"
                found[_renamed(name)] = _transposed(name, own)
        elif key.startswith(prefix) and (name := _renamed(inside)) != inside:
            found[name] = _transposed(inside, value)
        else:
            found[key] = value
    # one layer has keys and values of the pooling, without its queries
    return {key.replace("attn_pool.qkv.", "attn_pool.kv."): value for key, value in joined(found).items()}


def _renamed(name: str) -> str:
    for theirs, ours in _NAMES.items():
        name, changed = re.subn(f"^{theirs}", ours, name)
        if changed:
            for part, own in _PARTS.items():
                name = name.replace(part, own)
            return name
    return name


def _transposed(name: str, value: Tensor) -> Tensor:
    """As torch has it: [out, in], and [out, in, height, width] for patches. JAX keeps heads apart: queries,
    keys and values are [C, H, D], and the layer behind them [H, D, C]."""
    if match := _QUERIES.search(name):
        return value.flatten(1).T if match[1] == "kernel" else value.flatten()
    if not name.endswith("kernel"):
        return value
    if name.endswith("/out/kernel"):
        return value.flatten(0, 1).T
    return value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T
