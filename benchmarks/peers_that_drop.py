"""Others' policies that drop tokens, in timm's model with the same weights. Their code is read from where the
caller keeps it (`peer_paths`).

B batch, M tokens, C channels.
"""

import sys
import tempfile
from contextlib import chdir
from copy import deepcopy
from functools import partial
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from peers import package
from torch import Tensor, nn

from pipeline.merging.policies.gtp import normalised, semantic_neighbours, spatial_neighbours


def gtp(weights: nn.Module, folder: str, *, r: list[int]) -> nn.Module:
    """The authors' blocks of GTP-ViT. The graph is ours, as they make it on a GPU and in float32."""
    authors, model = package(folder, "models_v3"), deepcopy(weights)
    blocks = [_gtp_block(authors, own, count) for own, count in zip(_blocks(model), r, strict=True)]

    def forward(images: Tensor) -> Tensor:
        x = _embedded(model, images)
        side = round((x.shape[1] - 1) ** 0.5)
        near = spatial_neighbours((side, side), x.device) | semantic_neighbours(x[:, 1:], 8)
        graph = normalised(near, x.dtype)
        with tempfile.TemporaryDirectory() as room, chdir(room):  # each of their steps writes a file
            for block in blocks:
                x, graph, _ = block(x, graph)
        return model.forward_head(model.norm(x))  # pyright: ignore[reportCallIssue]

    return _Called(forward)


def _gtp_block(authors: Any, own: Any, count: int) -> nn.Module:
    block = authors.GraphPropagationBlock(
        own.attn.proj.out_features,
        own.attn.num_heads,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=own.norm1.eps),
        selection="MixedAttnMax" if count else "None",
        propagation="GraphProp",
        num_prop=count,
        alpha=0.1,
    )
    block.load_state_dict(own.state_dict())
    return block.eval().to(own.norm1.weight.dtype)


def evit(weights: nn.Module, folder: str, *, r: list[int], fuse: bool = False) -> nn.Module:
    """The authors' blocks of EViT. Their counter of MACs, which nothing here calls, need not be installed;
    their models do not take the place of timm's."""
    sys.modules.setdefault("torchprofile", _Named("torchprofile", profile_macs=None))
    from timm.models import registry

    with patch.object(registry, "register_model", lambda build: build):
        authors, model = package(folder, "evit"), deepcopy(weights)
    blocks = [_evit_block(authors, own, fuse) for own in _blocks(model)]

    def forward(images: Tensor) -> Tensor:
        x = _embedded(model, images)
        for block, count in zip(blocks, r, strict=True):
            left = x.shape[1] - 1 - count - fuse * bool(count)
            x = block(x, keep_rate=0.5, tokens=left)[0] if count else block(x, keep_rate=1)[0]
        return model.forward_head(model.norm(x))  # pyright: ignore[reportCallIssue]

    return _Called(forward)


def as_vit(weights: nn.Module, folder: str, *, r: list[int]) -> nn.Module:
    """The authors' AS-ViT on batches, of which it keeps the average count. Its thresholds are set where r
    patches of an image are below them on average."""
    sys.modules.setdefault("torchprofile", _Named("torchprofile", profile_macs=None))
    for name in ("utils", "vit"):  # as other peers call theirs
        sys.modules.pop(name, None)
    vit: Any = weights
    removed = [(block, count) for block, count in enumerate(r) if count]
    model = package(folder, "vit").VisionTransformerDiffPruning(
        num_classes=vit.num_classes,
        embed_dim=vit.embed_dim,
        depth=len(vit.blocks),
        num_heads=vit.blocks[0].attn.num_heads,
        pruning_loc=[block + 1 for block, _ in removed],  # by the scores of the block before
    )
    model.load_state_dict(weights.state_dict(), strict=False)
    for part, (_, count) in zip(model.score_predictor, removed, strict=True):
        part.register_forward_pre_hook(partial(_set_threshold, count))
    return model.to(vit.cls_token.dtype)


def _set_threshold(count: int, part: Any, args: tuple[Tensor]) -> None:
    """In the middle between the scores [B, P] of which `count` for each image are below it."""
    ranked, below = args[0].flatten().sort().values, count * len(args[0])
    part.keep_threshold.data = (ranked[below - 1] + ranked[below]) / 2


def _evit_block(authors: Any, own: Any, fuse: bool) -> nn.Module:
    block = authors.Block(
        own.attn.proj.out_features,
        own.attn.num_heads,
        qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=own.norm1.eps),
        keep_rate=1,
        fuse_token=fuse,
    )
    block.load_state_dict(own.state_dict())
    return block.eval().to(own.norm1.weight.dtype)


def vid_tldr(weights: nn.Module, folder: str, *, r: list[int]) -> nn.Module:
    """The authors' merge of vid-TLDR. Attention and MLP are timm's, as theirs are of a ViT for videos; the
    mean over tokens counts them by size."""
    authors: Any = package(f"{folder}/multi_modality/utils", "vid_TLDR")
    authors.torch, model = _InDouble(), deepcopy(weights)

    def forward(images: Tensor) -> Tensor:
        x, info = _embedded(model, images), {"use": True, "r": r, "source_trace": False, "source": None}
        info["size"] = None
        for layer, block in enumerate(_blocks(model)):
            mixed, attention = _attended(block.attn, block.norm1(x), info["size"])
            x = authors.vidTLDR(x + mixed, attention, info, layer)
            x = x + block.mlp(block.norm2(x))
        size = torch.ones_like(x[..., :1]) if info["size"] is None else info["size"]
        pooled = (model.norm(x) * size).sum(dim=1) / size.sum(dim=1)  # pyright: ignore[reportCallIssue]
        return model.head(model.fc_norm(pooled))  # pyright: ignore[reportCallIssue]

    return _Called(forward)


def _attended(attn: Any, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
    """The output [B, M, C] of timm's attention, in which keys count by size [B, M, 1], and the attention
    [B, H, M, M] in which they count once."""
    q, k, v = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    logits = q @ k.mT * attn.scale
    sized = logits if size is None else logits + size.log()[:, None, None, :, 0]
    mixed = sized.softmax(dim=-1) @ v
    return attn.proj(mixed.transpose(1, 2).flatten(2)), logits.softmax(dim=-1)


class _Called(nn.Module):
    """A function as a module."""

    def __init__(self, forward: Any):
        super().__init__()
        self.call = forward

    def forward(self, images: Tensor) -> Tensor:
        return self.call(images)


class _Named(ModuleType):
    """A module of these names."""

    def __init__(self, name: str, **names: Any):
        super().__init__(name)
        self.__dict__.update(names)


class _InDouble:
    """torch, in which what is cast to float32 stays in float64."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def _blocks(model: Any) -> Any:
    return model.blocks


def _embedded(model: Any, images: Tensor) -> Tensor:
    """Tokens [B, M, C] before the first block."""
    return model.norm_pre(model._pos_embed(model.patch_embed(images)))
