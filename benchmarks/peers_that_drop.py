"""Others' policies that drop tokens, in timm's model with the same weights. Their code is read from where the
caller keeps it (`peer_paths`).

B batch, M tokens, C channels.
"""

import tempfile
from contextlib import chdir
from copy import deepcopy
from functools import partial
from typing import Any

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
