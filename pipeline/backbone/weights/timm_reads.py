"""State dicts of other projects that timm reads by itself, such as DINOv2's, under timm's keys: by its own
`checkpoint_filter_fn`, which renames tensors and runs nothing of a file."""

import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import cast

from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from pipeline.backbone.weights.keys import backbone_of, plain_key

_IN_CHUNK = re.compile(r"^blocks\.\d+\.(\d+\..+)")
_OF_TASKS = "tasks."


def timm_weights(state_dict: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The tensors under timm's keys; names that timm does not know stay as they are.

    Blocks in chunks, as DINOv2 and DINOv3 train, come out of them. timm's filter would resize positions and
    patches to the model's: it is shown the checkpoint's own sizes, so that all of ours is checked and
    resampled in one place. A state dict of ours stays as it is.
    """
    plain = {_IN_CHUNK.sub(r"blocks.\1", plain_key(key)): value for key, value in state_dict.items()}
    if any(key.startswith(_OF_TASKS) for key in plain):
        return plain
    own = backbone_of(module).patch_embed.get_parameter("proj.weight")
    patches = next((value for value in plain.values() if value.ndim == 4), own)
    sizes = SimpleNamespace(
        patch_embed=SimpleNamespace(proj=SimpleNamespace(weight=patches)), pos_embed=None, head=None
    )
    return checkpoint_filter_fn(plain, cast(VisionTransformer, sizes))
