"""The door to Hugging Face transformers: vision models of a folder or of the hub.

Importing this module does not import transformers, which takes seconds.
"""

import copy
import inspect
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pipeline.backbone.weights.huggingface_config import pixels_by
from pipeline.errors import ConfigError
from pipeline.extras import extra

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CLASSIFIER = "ForImageClassification"
"""How transformers ends the names of classes with a head for images."""
TOWER = "vision_model"
"""Name of the image tower in models of images and texts."""


def open_model(where: str) -> "PreTrainedModel":
    """The vision model of transformers in a folder that `save_pretrained` wrote, or under `user/name` on the
    hub, in evaluation mode: with its classifier where it has one, else the image tower alone where it reads
    texts too. A pooler that the weights lack is left out.

    Reads safetensors alone and runs none of the repository's code. Its attention is `sdpa`, as `eager` drops
    masks in some models. Raises ConfigError, also for weights that lack another part of the model.
    """
    with extra("hf"):
        from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
        is_classifier = any(name.endswith(CLASSIFIER) for name in config.architectures or ())
        kind = AutoModelForImageClassification if is_classifier else AutoModel
        model, told = kind.from_pretrained(
            where,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError, LookupError, RuntimeError, TypeError) as err:
        reason = str(err).strip().partition("\n")[0] or type(err).__name__
        raise ConfigError(
            f"transformers cannot open '{where}': {reason}; give a folder that save_pretrained wrote, with "
            "config.json and model.safetensors, or user/name of a vision model on the hub"
        ) from err
    drawn = sorted(told["missing_keys"])
    if not is_classifier and hasattr(model, TOWER):
        model = getattr(model, TOWER)
        drawn = [key.removeprefix(f"{TOWER}.") for key in drawn if key.startswith(f"{TOWER}.")]
    _without_drawn(model, drawn, where)
    return model.eval()


def _without_drawn(model: nn.Module, drawn: list[str], where: str) -> None:
    """Takes away a pooler that was drawn anew, as the weights have none. drawn: keys of all such tensors.
    Raises ConfigError where there are others, but for a mask token, which no image needs."""
    others = [key for key in drawn if not key.startswith("pooler.") and not key.endswith("mask_token")]
    if others:
        raise ConfigError(
            f"the weights of '{where}' lack {others[0]} ({len(others)} tensors in all), which transformers "
            "would draw anew; give the folder or name of the whole model"
        )
    if len(others) < len(drawn) and getattr(model, "pooler", None) is not None:
        model.pooler = None  # pyright: ignore[reportArgumentType]


def check_size(model: nn.Module, size: tuple[int, int], made: tuple[int, int]) -> None:
    """Raises ConfigError for a model that does not read images, or not of this (height, width) in pixels.
    made: what it is made for."""
    if hasattr(getattr(model, "config", None), "num_frames"):
        raise ConfigError(
            f"{type(model).__name__} reads clips, not images: patch it by dtem.patch, or train a run with "
            "backbone.frames on its weights"
        )
    tower = getattr(model, TOWER, getattr(model, "base_model", model))
    inputs = inspect.signature(tower.forward).parameters
    if "spatial_shapes" in inputs:
        raise ConfigError(
            f"{type(model).__name__} reads patches, not images: give a SigLIP 2 of one size, which is a "
            "SiglipVisionModel, or timm:naflexvit_base_patch16_siglip"
        )
    if "interpolate_pos_encoding" in inputs and size != made:
        raise ConfigError(
            f"{type(model).__name__} reads images of {made[0]}x{made[1]} pixels alone; leave --img-size out, "
            "or give timm's model of these weights"
        )


def pixels_on_hub(where: str) -> dict[str, Any]:
    """Fields of Preprocessing, as the image processor of `user/name` on the hub has them; none without one.
    Raises ConfigError."""
    with extra("hf"):
        from transformers.models.auto.image_processing_auto import get_image_processor_config
    try:
        processor = get_image_processor_config(where)
        return pixels_by(processor) if "image_mean" in processor else {}
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError) as err:
        raise ConfigError(f"the image processor of '{where}' cannot be read: {err}") from err


def pools(model: nn.Module) -> bool:
    """Whether a model of transformers whose tokens can merge has pooled features."""
    return not any(
        getattr(part, "use_head", True) is False or getattr(part, "pooler", True) is None
        for part in model.modules()
    )


def read_head(model: nn.Module, features: Tensor, *, pooled: bool) -> Tensor:
    """Logits [B, K], or pooled features [B, C], of a patched model of transformers for the
    `last_hidden_state` [B, N, C] of its image tower. What is around the tower runs with a stand-in of it.
    Raises ConfigError where that is no child of the model."""
    tower: Any = getattr(model, "tower", model)
    found = tower.pooled(features)
    if pooled:
        return found
    name = next((name for name, child in model.named_children() if child is tower), None)
    if name is None:
        raise ConfigError(f"{type(model).__name__} has its image tower inside another part; take `pooled`")
    around: Any = copy.copy(model)
    around._modules = {**model._modules, name: _Given(features, found)}
    return around(None).logits


class _Given(nn.Module):
    """An image tower whose outputs are known."""

    def __init__(self, features: Tensor, pooled: Tensor | None):
        super().__init__()
        self._found = features, pooled

    def forward(self, *_: Any, **options: Any) -> Any:
        with extra("hf"):
            from transformers.modeling_outputs import BaseModelOutputWithPooling
        features, pooled = self._found
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=pooled)  # pyright: ignore
