"""State dicts of other projects that timm reads by itself, such as those of DINOv2 and DINOv3, under timm's
keys: by its own `checkpoint_filter_fn`, which renames tensors and runs nothing of a file."""

import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from timm.models import eva, vision_transformer
from torch import Tensor, nn

from pipeline.backbone.backbone import Backbone
from pipeline.backbone.weights.keys import backbone_of, plain_key
from pipeline.errors import CheckpointError

_IN_CHUNK = re.compile(r"^blocks\.\d+\.(\d+\..+)")
_BIAS_OF_ONE = re.compile(r"^blocks\.\d+\.attn\.[qv]_bias$")
_PATCHES = (
    "patch_embed.proj.weight",
    "visual.trunk.patch_embed.proj.weight",
    "visual.patch_embed.proj.weight",
    "visual.conv1.weight",
    "conv1.weight",
    "preprocessor.patchifier.proj.weight",
)
"""Names of the patch projection in what timm reads."""
_OF_TASKS = "tasks."
_RADIO = "radio_model.model.patch_generator.embedder.weight"


def timm_weights(state_dict: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The tensors under timm's keys; names that timm does not know stay as they are.

    Blocks in chunks, as DINOv2 and DINOv3 train, come out of them. timm's filter would resize positions and
    patches to the model's: it is shown the checkpoint's own sizes, so that all of ours is checked and
    resampled in one place. A state dict of ours stays as it is. Raises CheckpointError for RADIO's.
    """
    plain = {_IN_CHUNK.sub(r"blocks.\1", plain_key(key)): value for key, value in state_dict.items()}
    if any(key.startswith(_OF_TASKS) for key in plain):
        return plain
    if _RADIO in plain:
        raise CheckpointError(
            "RADIO's own file has positions that only its own code resamples; give backbone.pretrained, or a "
            "file that timm saved"
        )
    backbone = backbone_of(module)
    own = dict(backbone.named_parameters())
    given = (plain[name] for name in _PATCHES if name in plain and plain[name].ndim == 4)
    patches = next(given, own.get("patch_embed.proj.weight"))
    shown: Any = SimpleNamespace(
        patch_embed=SimpleNamespace(proj=SimpleNamespace(weight=patches)),
        pos_embed=None,
        head=None,
        get_parameter=lambda name: None,
    )
    if not is_eva(backbone):
        return vision_transformer.checkpoint_filter_fn(plain, shown)
    tensors = eva.checkpoint_filter_fn(plain, shown)
    # DINOv3 has biases of 0 where it was distilled, and timm a model without them
    return {key: value for key, value in tensors.items() if key in own or not _is_zero_bias(key, value)}


def is_eva(backbone: Backbone) -> bool:
    """Whether the blocks are those of timm's Eva, whose tensors have other names than a ViT's."""
    return any(isinstance(block, eva.EvaBlock | eva.EvaBlockPostNorm) for block in backbone.blocks)


def _is_zero_bias(key: str, value: Tensor) -> bool:
    return _BIAS_OF_ONE.match(key) is not None and not value.any()
