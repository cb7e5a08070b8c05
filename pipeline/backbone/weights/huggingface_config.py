"""What config.json and preprocessor_config.json of Hugging Face transformers say of a vision model."""

from collections.abc import Mapping
from typing import Any

from pipeline.backbone.weights.stated import Stated

USUAL: dict[str, tuple[int, str]] = {
    "vit": (12, "gelu"),
    "deit": (12, "gelu"),
    "vit_mae": (12, "gelu"),
    "videomae": (12, "gelu"),
    "dinov2": (12, "gelu"),
    "dinov2_with_registers": (12, "gelu"),
    "dinov3_vit": (6, "gelu"),
    "clip_vision_model": (12, "quick_gelu"),
    "siglip_vision_model": (12, "gelu_pytorch_tanh"),
    "siglip2_vision_model": (12, "gelu_pytorch_tanh"),
}
"""Model type -> heads and activation of a model whose config leaves them out, as older files do."""
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "relu": "relu",
}
"""transformers' name of an activation -> timm's."""
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
"""Pillow's number of an interpolation -> its name."""


def stated_by(config: Mapping[str, Any]) -> Stated:
    """What the config says of the vision model, or of the one inside a model of images and texts. What it
    says in an unknown way is left out. A SwiGLU has its own activation."""
    config = config.get("vision_config", config)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in USUAL:
        return Stated()
    heads, activation = USUAL[kind]
    heads = config.get("num_attention_heads", heads)
    name = "silu" if config.get("use_swiglu_ffn") else config.get("hidden_act", activation)
    return Stated(
        heads=heads if isinstance(heads, int) else None,
        activation=_ACTIVATIONS.get(name) if isinstance(name, str) else None,
    )


def pixels_by(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of Preprocessing from the config of an image processor. Values are not checked.

    Raises LookupError, TypeError and ArithmeticError for what no processor writes.
    """
    scale = 255 * processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 255
    normalised = processor.get("do_normalize", True)
    mean, std = (processor["image_mean"], processor["image_std"]) if normalised else ((0,) * 3, (1,) * 3)
    found: dict[str, Any] = {
        "mean": [value / scale for value in mean],
        "std": [value / scale for value in std],
    }
    interpolation = _INTERPOLATIONS.get(processor.get("resample", 2))
    return found | ({"interpolation": interpolation} if interpolation else {}) | _crop(processor)


def _crop(processor: Mapping[str, Any]) -> dict[str, Any]:
    """crop_pct and crop_mode: the crop's share of what the image is resized to, by its short side or by
    both."""
    if not processor.get("do_resize", True) or "size" not in processor:
        return {}
    size, crops = processor["size"], processor.get("do_center_crop", False)
    # older files give one number: the short side where a crop follows, else both sides
    short = size.get("shortest_edge") if isinstance(size, dict) else size if crops else None
    resized = short or (size["height"] if isinstance(size, dict) else size)
    crop = processor.get("crop_size", resized) if crops else resized
    crop = crop["height"] if isinstance(crop, dict) else crop
    mode = "center" if short else "squash"
    return {"crop_pct": min(1.0, crop / resized), "crop_mode": mode}
