"""State dicts of Hugging Face transformers' vision models under timm's keys, by the names of the tensors
alone: as the hub has them, and as a model of transformers 5 has them in memory."""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.backbone.backbone import Backbone
from pipeline.backbone.weights.block_names import IN_LAYER, renamed
from pipeline.backbone.weights.joined import joined
from pipeline.backbone.weights.keys import backbone_of, plain_key
from pipeline.backbone.weights.timm_reads import is_eva, timm_weights
from pipeline.errors import CheckpointError

_PATCHES = re.compile(r"^(|.*\.)embeddings\.patch_embeddings?\.(?:projection\.)?weight$")
_BLOCK = re.compile(r"(?:model\.)?(?:encoder\.)?layers?\.(\d+)\.(.+)")
_OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.class_embedding": "cls_token",
    "embeddings.distillation_token": "dist_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.position_embedding.weight": "pos_embed",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "embeddings.patch_embeddings.": "patch_embed.proj.",
    "embeddings.patch_embedding.": "patch_embed.proj.",
    "pre_layrnorm.": "norm_pre.",
    "layernorm.": "norm.",
    "post_layernorm.": "norm.",
    "norm.": "norm.",
    "head.probe": "attn_pool.latent",
    "head.attention.in_proj_": "attn_pool.qkv.",
    "head.attention.out_proj.": "attn_pool.proj.",
    "head.layernorm.": "attn_pool.norm.",
    "head.mlp.": "attn_pool.mlp.",
}
_HEADS = {"classifier.": "head.", "cls_classifier.": "head.", "distillation_classifier.": "head_dist."}


def huggingface_weights(state_dict: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor] | None:
    """The tensors under timm's keys; None for another project's state dict.

    Knows ViT, DeiT, ViTMAE, VideoMAE, DINOv2 with and without registers, DINOv3, and the image towers of
    CLIP, SigLIP and SigLIP 2, alone or inside a model of images and texts. Other names stay as they are, and
    so does a classifier that reads more than one vector of the model's width.
    """
    plain = {plain_key(key): value for key, value in state_dict.items()}
    patches, prefix = next(((key, match[1]) for key in plain if (match := _PATCHES.match(key))), ("", ""))
    if not patches:
        return None
    width = len(plain[patches])
    tensors = {_renamed(key, prefix, value, width): value for key, value in plain.items()}
    backbone = backbone_of(module)
    if not is_eva(backbone):
        return _shaped(joined(tensors), backbone)
    return timm_weights(_shaped(joined(_as_dinov3(tensors)), backbone), module)


def _as_dinov3(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a DINOv3 where its own repository has other names, which timm's filter reads. Raises
    CheckpointError for biases of keys, which timm's blocks have not."""
    for key, value in tensors.items():
        if key.endswith(".attn.k_proj.bias") and bool(value.any()):
            raise CheckpointError(
                f"'{key}' of the checkpoint has no place in timm's Eva; merge in transformers' model"
            )
    names = {"reg_token": "storage_tokens"}
    if any(".mlp.gate_proj." in key for key in tensors):
        names |= {"mlp.gate_proj.": "mlp.w1.", "mlp.up_proj.": "mlp.w2.", "mlp.fc2.": "mlp.w3."}
    found = {}
    for key, value in tensors.items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        found[key] = value
    return found


def _renamed(key: str, prefix: str, value: Tensor, width: int) -> str:
    for theirs, ours in _HEADS.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs) if value.shape[-1] == width or value.ndim == 1 else key
    if not key.startswith(prefix):
        return key
    inside = key.removeprefix(prefix)
    match = _BLOCK.fullmatch(inside)
    name, table, place = (match[2], IN_LAYER, f"blocks.{match[1]}.") if match else (inside, _OUTSIDE, "")
    found = renamed(name, table)
    return key if found is None else place + found


def _shaped(given: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """The tensors in timm's shapes. Where the backbone has no positions for its prefix tokens, these take
    theirs. A patch projection has a bias, of zeros, where the backbone's has one."""
    for key in given.keys() & {"cls_token", "pos_embed"}:
        given[key] = given[key].reshape(1, -1, given[key].shape[-1])
    for kind in {"weight", "bias"} if "attn_pool.qkv.weight" in given else ():
        value = given.pop(f"attn_pool.qkv.{kind}")
        given[f"attn_pool.q.{kind}"], given[f"attn_pool.kv.{kind}"] = value.tensor_split([len(value) // 3])
    patches = given["patch_embed.proj.weight"]
    if patches.ndim == 2:
        side = math.isqrt(patches.shape[1] // 3)
        given["patch_embed.proj.weight"] = patches.reshape(-1, side, side, 3).permute(0, 3, 1, 2)
    if "patch_embed.proj.bias" in backbone.state_dict():
        given.setdefault("patch_embed.proj.bias", torch.zeros(len(patches)))
    if backbone.no_embed_class and "pos_embed" in given:
        for key in [key for key in ("cls_token", "dist_token") if key in given]:
            own, given["pos_embed"] = given["pos_embed"].tensor_split([1], dim=1)
            given[key] = given[key] + own
    return given
