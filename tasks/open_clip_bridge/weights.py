"""State dicts of open_clip's CLIP and CoCa models under our keys: the image tower becomes the backbone, and
the rest of a CoCa the captioning task. Only the names of tensors are used, not open_clip.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbone.backbone import Backbone
from pipeline.backbone.weights.block_names import renamed
from pipeline.backbone.weights.files import Weights
from pipeline.backbone.weights.keys import backbone_of
from pipeline.backbone.weights.stated import Stated
from pipeline.backbone.weights.timm_reads import is_eva
from pipeline.errors import CheckpointError
from pipeline.parts import BASE, roles_of

log = logging.getLogger(__name__)

_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_IN_BLOCK = {
    "ln_1.": "norm1.",
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj.": "attn.proj.",
    "ls_1.": "ls1.",
    "ln_2.": "norm2.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
    "ls_2.": "ls2.",
}
_IN_TOWER = {
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "conv1.": "patch_embed.proj.",
    "ln_pre.": "norm_pre.",
}
_BEHIND_TOKENS = (
    "proj",
    "ln_post.",
    "attn_pool.",
    "head.",
    "trunk.head.",
    "trunk.fc_norm.",
    "trunk.attn_pool.",
)
_TRUNK = "visual.trunk."
_POOLER_NORM = "attn_pool.ln_k."
_IN_CAPTIONING = {
    "text.": "text.",
    "text_decoder.": "decoder.",
    "visual.attn_pool.": "pooler.",
    "visual.ln_post.": "pooler.ln_post.",
    "visual.proj": "pooler.proj",
    "logit_scale": "logit_scale",
}


class OpenClipWeights(Weights):
    """A state dict of open_clip, and the config of its model, for what shapes do not tell."""

    def __init__(self, tensors: Mapping[str, Tensor], config: Mapping[str, Any]):
        super().__init__(tensors, None, _stated(config))
        self.config = config


def image_tower_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a native (`visual.*`) or timm (`visual.trunk.*`) image tower under timm's keys, which
    are those of a MergingViT.

    At r = 0 the backbone's tokens after its last norm then equal CLIP's after `ln_post`, and those that a
    CoCa's pooler reads after its `ln_k`. A tensor that no ViT has keeps its key.
    """
    tower = {ours: state_dict[theirs] for theirs, ours in _tower_names(state_dict).items()}
    for key in tower.keys() & {"cls_token", "pos_embed"}:
        tower[key] = tower[key].reshape(1, -1, tower[key].shape[-1])
    if "visual.conv1.weight" in state_dict and "norm_pre.weight" not in tower:
        # a timm ViT without norm_pre has this bias
        tower["patch_embed.proj.bias"] = torch.zeros(len(state_dict["visual.conv1.weight"]))
    return tower


def caption_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The other tensors of a CoCa under the captioning task's keys: text.*, decoder.*, pooler.*, logit_scale.
    Empty for a CLIP."""
    parts = {ours: state_dict[theirs] for theirs, ours in _caption_names(state_dict).items()}
    return parts | {"logit_scale": parts["logit_scale"].reshape(1)} if "logit_scale" in parts else parts


def open_clip_weights(state_dict: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor] | None:
    """The tensors of an open_clip checkpoint under the keys of a backbone or MultiTaskModel; None for a
    checkpoint of another project.

    The image tower has to be that of the module. Other parts of a CoCa are included where the module has a
    captioning task with the same vocabulary. Tensors without a place get the prefix `open_clip:`. Raises
    CheckpointError with the first tensor that differs.
    """
    given = {key.removeprefix("module."): value for key, value in state_dict.items()}
    backbone = backbone_of(module)
    if not any(key.startswith("visual.") for key in given) or _is_of_pe(given, backbone):
        return None
    tower, names = image_tower_weights(given), _tower_names(given)
    behind = {
        key: tower.pop(key) for key in list(tower) if backbone.norm_after_pool and key.startswith("norm.")
    }
    home = "pooler.ln_k." if _last_norm(given) == _POOLER_NORM else "fc_norm."
    behind = {home + key.removeprefix("norm."): value for key, value in behind.items()}
    _check_tower(tower, {ours: theirs for theirs, ours in names.items() if ours in tower}, backbone)
    pooling = _pooling_names(given, module)
    names |= pooling
    parts = {}
    if _same_vocabulary(given, module):
        parts, names = caption_weights(given), names | _caption_names(given)
    return (
        tower
        | behind
        | {ours: given[theirs] for theirs, ours in pooling.items()}
        | parts
        | {f"open_clip:{key}": value for key, value in given.items() if key not in names}
    )


def _is_of_pe(given: Mapping[str, Tensor], backbone: Backbone) -> bool:
    """Whether it is PE's, which has open_clip's names, but timm's Eva as its ViT. timm reads it."""
    return is_eva(backbone) and not any(key.startswith(_TRUNK) for key in given)


def _last_norm(state_dict: Mapping[str, Tensor]) -> str:
    """Name of the last norm of the tokens. With a pooler, `ln_post` is the norm of the pooler's output."""
    return _POOLER_NORM if any(key.startswith("visual.attn_pool.") for key in state_dict) else "ln_post."


def _tower_names(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """Key in the checkpoint -> key in the backbone, in the checkpoint's order."""
    last_norm, names = _last_norm(state_dict), {}
    for theirs in state_dict:
        name = theirs.removeprefix("visual.")
        if name == theirs or (name.startswith(_BEHIND_TOKENS) and not name.startswith(last_norm)):
            continue
        if name.startswith("trunk."):
            names[theirs] = name.removeprefix("trunk.")
        elif match := _BLOCK.fullmatch(name):
            inside = renamed(match[2], _IN_BLOCK)
            names[theirs] = f"blocks.{match[1]}.{inside}" if inside else theirs
        else:
            names[theirs] = renamed(name, _IN_TOWER | {last_norm: "norm."}) or theirs
    return names


def _pooling_names(given: Mapping[str, Tensor], module: nn.Module) -> dict[str, str]:
    """Key in the checkpoint -> key in a head, for pooling by attention, where a head of the module has it."""
    if not any(key.endswith("attn_pool.latent") for key in module.state_dict()):
        return {}
    return {key: key.removeprefix(_TRUNK) for key in given if key.startswith(f"{_TRUNK}attn_pool.")}


def _caption_names(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    if not any(key.startswith("text_decoder.") for key in state_dict):
        return {}
    last_norm = f"visual.{_last_norm(state_dict)}"
    names = {
        theirs: renamed(theirs, _IN_CAPTIONING) for theirs in state_dict if not theirs.startswith(last_norm)
    }
    return {theirs: ours for theirs, ours in names.items() if ours}


def _check_tower(tower: Mapping[str, Tensor], theirs: Mapping[str, str], backbone: Backbone) -> None:
    """Raises CheckpointError where tower and backbone, without metric embeddings, differ in names or shapes.
    Positions may have another grid."""

    def differs(what: str) -> CheckpointError:
        return CheckpointError(
            f"{what}: another image tower; give backbone.name and backbone.options of the checkpoint's "
            "(timm calls them vit_*_clip_*)"
        )

    roles = roles_of(backbone)
    own = {key: value.shape for key, value in backbone.state_dict().items() if roles[key].kind == BASE}
    for key, name in theirs.items():
        value = tower[key]
        if key not in own:
            raise differs(f"'{name}' of the checkpoint has no place in the backbone")
        if own[key] != value.shape and not (key == "pos_embed" and own[key][-1] == value.shape[-1]):
            raise differs(
                f"'{name}' is {tuple(value.shape)} in the checkpoint, and '{key}' {tuple(own[key])} in "
                "the backbone"
            )
    for key in own:
        if key not in tower:
            raise differs(f"'{key}' of the backbone is not in the checkpoint")


def _stated(config: Mapping[str, Any]) -> Stated:
    """What open_clip's config states of a native tower. One of timm is built by timm's name alone."""
    vision = config["vision_cfg"]
    if vision.get("timm_model_name"):
        return Stated()
    tanh = (vision.get("act_kwargs") or {}).get("approximate") == "tanh"
    return Stated(
        heads=vision.get("width", 768) // vision.get("head_width", 64),
        activation="quick_gelu" if config.get("quick_gelu") else "gelu_tanh" if tanh else "gelu",
    )


def _same_vocabulary(given: Mapping[str, Tensor], module: nn.Module) -> bool:
    """Whether a captioning task of the module has the checkpoint's vocabulary. Warns where it has another."""
    key = "text.token_embedding.weight"
    own = [len(value) for name, value in module.state_dict().items() if name.endswith(f".{key}")]
    if not own or key not in given:
        return False
    if len(given[key]) not in own:
        log.warning(
            "the checkpoint reads %d different tokens and the task %d: only its image tower is taken",
            len(given[key]),
            own[0],
        )
    return len(given[key]) in own
