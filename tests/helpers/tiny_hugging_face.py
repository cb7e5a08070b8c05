"""Models of transformers of a few thousand weights, made from configs without a download."""

from typing import Any

import torch
import transformers
from tiny import SIZES, clips, generator, images

COMMON: dict[str, Any] = dict(
    hidden_size=SIZES["embed_dim"],
    num_hidden_layers=SIZES["depth"],
    num_attention_heads=SIZES["num_heads"],
    image_size=64,
    patch_size=SIZES["patch_size"],
)
MLP = COMMON | {"intermediate_size": 96}
TEXT = dict(hidden_size=48, num_hidden_layers=1, num_attention_heads=3, intermediate_size=48, vocab_size=9)
LABELS = {"num_labels": 7}
NAFLEX = {key: value for key, value in MLP.items() if key != "image_size"} | {"num_patches": 64}
REGISTERS = {"num_register_tokens": 4}
VIDEO = MLP | {"image_size": 32, "num_frames": 6}

MODELS: dict[str, tuple[str, Any]] = {
    "ViTModel": ("ViTConfig", MLP),
    "ViTForImageClassification": ("ViTConfig", MLP | LABELS),
    "Dinov2Model": ("Dinov2Config", COMMON | {"use_swiglu_ffn": True, "drop_path_rate": 0.1}),
    "Dinov2ForImageClassification": ("Dinov2Config", COMMON | LABELS),
    "Dinov2WithRegistersForImageClassification": (
        "Dinov2WithRegistersConfig",
        COMMON | REGISTERS | LABELS,
    ),
    "DINOv3ViTModel": ("DINOv3ViTConfig", MLP | REGISTERS | {"use_gated_mlp": True}),
    "CLIPVisionModel": ("CLIPVisionConfig", MLP),
    "CLIPVisionModelWithProjection": ("CLIPVisionConfig", MLP | {"projection_dim": 24}),
    "CLIPForImageClassification": ("CLIPConfig", {"vision_config": MLP} | LABELS),
    "SiglipVisionModel": ("SiglipVisionConfig", MLP),
    "SiglipForImageClassification": ("SiglipConfig", {"vision_config": MLP} | LABELS),
    "VideoMAEModel": ("VideoMAEConfig", VIDEO),
    "VideoMAEForVideoClassification": ("VideoMAEConfig", VIDEO | LABELS),
    "Siglip2VisionModel": ("Siglip2VisionConfig", NAFLEX),
    "Siglip2ForImageClassification": ("Siglip2Config", {"vision_config": NAFLEX} | LABELS),
}
"""Class of a model -> the class of its config, and what it holds."""
TOWERS = [name for name in MODELS if not name.endswith(("Classification", "Projection"))] + [
    "Dinov2WithRegistersForImageClassification"
]
"""One model for each family of layers."""


def library_model(name: str, **options: Any) -> transformers.PreTrainedModel:
    """The library's own model with random weights everywhere, also in what starts at zero or one."""
    config, sizes = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**sizes | options))
    draw = generator(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model.eval()


def inputs(name: str, seed: int = 1) -> dict[str, torch.Tensor]:
    """What the model's forward takes: two images, or clips; for SigLIP 2 patches of an image of 5x6, and of
    one of 4x6 with six more that are padding."""
    if name.startswith("VideoMAE"):
        return {"pixel_values": clips(frames=6, seed=seed)}
    if not name.startswith("Siglip2"):
        return {"pixel_values": images(seed=seed)}
    return {
        "pixel_values": torch.randn(2, 30, 3 * 8 * 8, generator=generator(seed)),
        "pixel_attention_mask": (torch.arange(30) < torch.tensor([[30], [24]])).long(),
        "spatial_shapes": torch.tensor([[5, 6], [4, 6]]),
    }
