"""Weights of video ViTs: VideoMAE's own keys, and images' weights for a backbone of clips."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from pipeline.backbone.backbone import Backbone
from pipeline.backbone.tubelets import TubeletEmbed
from pipeline.backbone.vit import MergingViT
from pipeline.backbone.weights.keys import plain_key
from pipeline.errors import CheckpointError

PATCHES = "patch_embed.proj.weight"
_ENCODER = re.compile(r"^encoder\.(?=(?:patch_embed|blocks|norm)\.)")
_BIAS = ".attn.qkv.bias"


def videomae_weights(state_dict: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor] | None:
    """The tensors of the repositories of VideoMAE and VideoMAE V2, which have timm's keys, before fine-tuning
    inside of `encoder`, beside a decoder; None for a state dict without tubelets. Runs of ours have the same
    keys."""
    plain = {_ENCODER.sub("", plain_key(key)): value for key, value in state_dict.items()}
    return plain if PATCHES in plain and plain[PATCHES].ndim == 5 else None


def for_clips(given: Mapping[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """The tensors, by timm's keys, as a backbone of clips has them; as they are for one of images.

    Of a model of images: a tubelet's frames all get the weights of a patch over their number, so that equal
    frames are embedded as one image is (the inflation of I3D, Carreira and Zisserman, CVPR 2017). Its class
    token, its learned positions and the norm before its pooling have no place, and are left. Biases of keys
    are left out: they change no attention. Raises CheckpointError for weights of clips in a backbone of
    images.
    """
    patches, found = given.get(PATCHES), dict(given)
    embed = backbone.patch_embed if isinstance(backbone, MergingViT) else None
    if not isinstance(embed, TubeletEmbed):
        if patches is not None and patches.ndim == 5:
            raise CheckpointError(
                f"the checkpoint's model reads clips, in tubelets of {patches.shape[2]} frames, and the "
                f"backbone images; give backbone.frames and backbone.tubelet={patches.shape[2]}"
            )
        return found
    if patches is not None and patches.ndim == 4:
        found[PATCHES] = patches[:, :, None].expand(-1, -1, embed.tubelet, -1, -1) / embed.tubelet
    for key in [key for key in found if key.endswith(_BIAS)]:
        if found[key].ndim == 1 and len(found[key]) % 3 == 0:
            place, (q, _, v) = key.removesuffix("qkv.bias"), found.pop(key).chunk(3)
            found |= {f"{place}q_bias": q, f"{place}v_bias": v}
    return found
