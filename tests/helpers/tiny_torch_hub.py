"""Models of a few thousand weights with the layouts of torch hub's DINOv2 and DINOv3.

Their code is our own (tests/helpers/torch_hub), or the original one where DTEM_TORCH_HUB_CODE names a folder
that has checkouts `dinov2` and `dinov3` of it: tests/parity/test_torch_hub_originals.py runs the laws so.
"""

import importlib
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tiny import SIZES, generator
from torch import nn

CODE = Path(os.environ.get("DTEM_TORCH_HUB_CODE") or Path(__file__).parent / "torch_hub")
sys.path.extend(str(CODE / package) for package in ("dinov2", "dinov3") if (CODE / package).is_dir())

DINOV2 = SIZES | {"img_size": 64, "init_values": 1.0, "block_chunks": 0}
DINOV3 = SIZES | {
    "img_size": 64,
    "layerscale_init": 1.0,
    "n_storage_tokens": 4,
    "pos_embed_rope_dtype": "fp32",
    "norm_layer": "layernormbf16",
    "mask_k_bias": True,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "torch hub dinov2: class token": ("dinov2", DINOV2),
    "torch hub dinov2: registers, swiglu, blocks in chunks": (
        "dinov2",
        DINOV2 | {"num_register_tokens": 4, "ffn_layer": "swiglufused", "block_chunks": 3},
    ),
    "torch hub dinov3: rotary positions, registers": ("dinov3", DINOV3),
    "torch hub dinov3: norms of the prefix, swiglu, no bias": (
        "dinov3",
        DINOV3
        | {
            "untie_cls_and_patch_norms": True,
            "untie_global_and_local_cls_norm": True,
            "ffn_layer": "swiglu64",
            "qkv_bias": False,
        },
    ),
}
"""What is in front of the patches, and how the rest differs -> (package, options of its model)."""


def part(package: str, name: str) -> Any:
    """`module.Name` of a package of torch hub."""
    module, _, attribute = f"{package}.{name}".rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def library_model(kind: str, **options: Any) -> nn.Module:
    """The library's own model with random weights everywhere, also in what starts at zero or one."""
    package, sizes = MODELS[kind]
    if package == "dinov2":
        attention = part("dinov2", "layers.MemEffAttention")
        sizes = sizes | {
            "block_fn": partial(part("dinov2", "layers.NestedTensorBlock"), attn_class=attention)
        }
    torch.manual_seed(0)
    model = part(package, "models.vision_transformer.DinoVisionTransformer")(**sizes | options)
    model.init_weights()
    return drawn(model).eval()


def classifier(kind: str, layers: int = 4) -> nn.Module:
    """The package's linear classifier around a model, of 7 classes."""
    package, _ = MODELS[kind]
    backbone, more = library_model(kind, depth=4), {"layers": layers} if package == "dinov2" else {}
    wide = (1 + layers if more else 2) * SIZES["embed_dim"]
    wrapper = part(package, "hub.classifiers._LinearClassifierWrapper")
    return drawn(wrapper(backbone=backbone, linear_head=nn.Linear(wide, 7), **more)).eval()


def drawn(model: nn.Module) -> nn.Module:
    draw = generator(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model
