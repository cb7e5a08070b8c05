"""Checkpoints by open_clip's names. Importing this module imports open_clip, which takes seconds."""

from pathlib import Path

from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

from pipeline.backbone.weight_files import read_state_dict
from pipeline.errors import CheckpointError
from pipeline.registry import unknown_name
from tasks.open_clip_bridge.parts import named_config
from tasks.open_clip_bridge.weights import OpenClipWeights


def read_pretrained(where: str) -> OpenClipWeights:
    """`MODEL@TAG`, which open_clip downloads once, or `MODEL@FILE`; MODEL is open_clip's name and says what shapes do not.

    Only tensors are read from either. Raises ConfigError for an unknown model, CheckpointError otherwise.
    """
    model, _, tag = where.partition("@")
    config = named_config(model)
    published = get_pretrained_cfg(model, tag)
    if published:
        config["quick_gelu"] = published.get("quick_gelu", False)  # open_clip's `ViT-B-32` has tags of either kind
        path = _downloaded(where, published)
    elif Path(tag).is_file():
        path = Path(tag)
    else:
        raise CheckpointError(f"open_clip:{where}: no such file, and {unknown_name('tag', tag, list_pretrained_tags_by_model(model))}")
    return OpenClipWeights(read_state_dict(path), config)


def _downloaded(where: str, published: dict) -> Path:
    try:
        return Path(download_pretrained(published))
    except (OSError, RuntimeError, ValueError) as err:
        raise CheckpointError(f"open_clip:{where} cannot be downloaded ({err}); give open_clip:MODEL@FILE of a copy") from err
