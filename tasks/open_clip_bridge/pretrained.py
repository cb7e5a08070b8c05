"""Reading of checkpoints by open_clip's names. Importing this module imports open_clip, which takes
seconds."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.backbone.weights.files import read_state_dict
from pipeline.errors import CheckpointError
from pipeline.extras import extra
from pipeline.registry import unknown_name
from tasks.open_clip_bridge.parts import named_config
from tasks.open_clip_bridge.weights import OpenClipWeights

with extra("captioning"):
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
    from open_clip.transform import PreprocessCfg

PIXELS = ("mean", "std", "interpolation", "resize_mode")


def read_pretrained(where: str) -> OpenClipWeights:
    """The weights of `MODEL@TAG`, which open_clip downloads once, or of `MODEL@FILE`. MODEL is open_clip's
    name, for what shapes do not tell, such as the activation.

    Only tensors are read from either. Raises ConfigError for an unknown model, CheckpointError otherwise.
    """
    model, _, tag = where.partition("@")
    config = named_config(model)
    published = get_pretrained_cfg(model, tag)
    if published:
        # tags of one model may differ in it, as those of `ViT-B-32` do
        config["quick_gelu"] = published.get("quick_gelu", False)
        path = _downloaded(where, published)
    elif Path(tag).is_file():
        path = Path(tag)
    else:
        raise CheckpointError(
            f"open_clip:{where}: no such file, and "
            f"{unknown_name('tag', tag, list_pretrained_tags_by_model(model))}"
        )
    return OpenClipWeights(read_state_dict(path), config)


def read_preprocessing(where: str) -> dict[str, Any]:
    """Preprocessing of `MODEL@TAG` or `MODEL@FILE`: that of open_clip's own evaluation, which crops the whole
    short side, or squashes the whole image.

    A file has that of its model's published weights where these agree, else CLIP's. Raises ConfigError for an
    unknown model.
    """
    model, _, tag = where.partition("@")
    named_config(model)
    usual = asdict(PreprocessCfg())
    tags = [tag] if get_pretrained_cfg(model, tag) else list_pretrained_tags_by_model(model)
    published = [_pixels(usual | get_pretrained_cfg(model, name)) for name in tags]
    agree = all(pixels == published[0] for pixels in published)
    pixels = published[0] if published and agree else _pixels(usual)
    squashed = pixels.pop("resize_mode") == "squash"
    return pixels | {"crop_pct": 1.0, "crop_mode": "squash" if squashed else "center"}


def _pixels(config: dict[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in PIXELS}


def _downloaded(where: str, published: dict) -> Path:
    try:
        return Path(download_pretrained(published))
    except (OSError, RuntimeError, ValueError) as err:
        raise CheckpointError(
            f"open_clip:{where} cannot be downloaded ({err}); give open_clip:MODEL@FILE of a copy"
        ) from err
