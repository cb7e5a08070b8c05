"""State dicts of the authors' DTEM release under timm's keys."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from pipeline.backbone.weights.keys import plain_key

_FUSED_LAYER = re.compile(r"^(.*blocks\.\d+\.)attn\.qkv\.(qkv_layer|metric_layer)\.(weight|bias)$")


def dtem_release_weights(state_dict: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor] | None:
    """The tensors under timm's keys; None for another project's state dict. The release keeps the layers for
    qkv and for the metric inside a fused layer, whose own weights repeat theirs; the inner ones are taken."""
    plain = {plain_key(key): value for key, value in state_dict.items()}
    inner = {key: match.groups() for key in plain if (match := _FUSED_LAYER.match(key))}
    if not inner:
        return None
    found = {
        f"{block}{'attn.qkv' if layer == 'qkv_layer' else 'metric'}.{kind}": plain[key]
        for key, (block, layer, kind) in inner.items()
    }
    return {key: value for key, value in plain.items() if key not in inner} | found
