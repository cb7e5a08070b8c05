"""State dicts of the authors' LeMeViT (ViTAE-Transformer/LeMeViT) under our keys, by the names of the tensors
alone. Their blocks are counted in each stage, ours over all of them."""

import re
from collections.abc import Mapping
from itertools import accumulate

from torch import Tensor, nn

from pipeline.backbone.weights.block_names import renamed
from pipeline.backbone.weights.keys import plain_key

_BLOCK = re.compile(r"stages\.(\d+)\.(\d+)\.(.+)")
_IN_BLOCK = {
    "pos_embed.": "position.",
    "norm1.": "norm1.",
    "attn.qkv1.": "attn.qkv_x.",
    "attn.qkv2.": "attn.qkv_c.",
    "attn.": "attn.",
    "gamma1": "ls1.gamma",
    "gamma2": "ls2.gamma",
    "norm2.": "norm2.",
    "mlp.0.": "mlp.fc1.",
    "mlp.3.": "mlp.fc2.",
}
_ENTRY = {
    "downsample_layers.0.": "stem.",
    "prototypes": "meta_tokens",
}
"""`prototype` is what the code before the paper's calls a meta token."""
_INTO_STAGE = {"downsample_layers": "image", "meta_token_downsample": "meta", "prototype_downsample": "meta"}
_WAY = re.compile(rf"({'|'.join(_INTO_STAGE)})\.(\d+)\.(.+)")


def lemevit_weights(state_dict: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor] | None:
    """The tensors under our keys; None for another project's state dict. Unknown names stay as they are, and
    so do ours."""
    plain = {plain_key(key): value for key, value in state_dict.items()}
    if not plain.keys() & {"meta_tokens", "prototypes"}:
        return None
    matches = [match for key in plain if (match := _BLOCK.fullmatch(key))]
    depths: dict[int, int] = {}
    for match in matches:
        stage, block = int(match[1]), int(match[2])
        depths[stage] = max(depths.get(stage, 0), block + 1)
    counts = [depths.get(stage, 0) for stage in range(max(depths, default=-1) + 1)]
    starts = [0, *accumulate(counts)]
    return {_renamed(key, starts): _shaped(key, value) for key, value in plain.items()}


def _renamed(key: str, starts: list[int]) -> str:
    if match := _BLOCK.fullmatch(key):
        inside = renamed(match[3], _IN_BLOCK)
        number = starts[int(match[1])] + int(match[2])
        return key if inside is None else f"blocks.{number}.{inside}"
    if found := renamed(key, _ENTRY):
        return found
    if match := _WAY.fullmatch(key):
        return f"entries.{match[2]}.{_INTO_STAGE[match[1]]}.{match[3]}"
    return key


def _shaped(key: str, value: Tensor) -> Tensor:
    """LayerScale is [1, 1, C] there."""
    return value.flatten() if re.search(r"\.gamma[12]$", key) else value
