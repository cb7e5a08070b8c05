"""State dicts of torchvision's VisionTransformer under timm's keys, by the names of the tensors alone."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from pipeline.backbone.weights.block_names import renamed
from pipeline.backbone.weights.keys import plain_key

_BLOCK = re.compile(r"encoder\.layers\.encoder_layer_(\d+)\.(.+)")
_IN_BLOCK = {
    "ln_1.": "norm1.",
    "self_attention.in_proj_": "attn.qkv.",
    "self_attention.out_proj.": "attn.proj.",
    "ln_2.": "norm2.",
    "mlp.0.": "mlp.fc1.",
    "mlp.3.": "mlp.fc2.",
    "mlp.linear_1.": "mlp.fc1.",
    "mlp.linear_2.": "mlp.fc2.",
}
"""`mlp.linear_N` is of files from before 0.12."""
_OUTSIDE = {
    "conv_proj.": "patch_embed.proj.",
    "class_token": "cls_token",
    "encoder.pos_embedding": "pos_embed",
    "encoder.ln.": "norm.",
    "heads.head.": "head.",
}


def torchvision_weights(state_dict: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor] | None:
    """The tensors under timm's keys; None for another project's state dict. Unknown names stay as they
    are."""
    plain = {plain_key(key): value for key, value in state_dict.items()}
    if "conv_proj.weight" not in plain:
        return None
    return {_renamed(key): value for key, value in plain.items()}


def _renamed(key: str) -> str:
    match = _BLOCK.fullmatch(key)
    name, table, place = (match[2], _IN_BLOCK, f"blocks.{match[1]}.") if match else (key, _OUTSIDE, "")
    found = renamed(name, table)
    return key if found is None else place + found
