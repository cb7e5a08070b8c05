"""The authors' semantic tokens and recovery of STViT-R, in timm's model with the same weights. Their code is
read from where the caller keeps it (`peer_paths`).

B batch, N patches, C channels.
"""

import importlib.util
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.merging.semantic_tokens import Recovery, SemanticTokens
from pipeline.model import MultiTaskModel

WINDOW, OF_WINDOW = 7, 3
"""Side of the authors' windows, and of the semantic tokens in each."""
THEIRS = {
    "norm1": "norm1",
    "q": "attn.q",
    "kv": "attn.kv",
    "proj": "attn.proj",
    "norm2": "norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "scale_1": "layer_scale_1",
    "scale_2": "layer_scale_2",
}
"""Part of our blocks of cross-attention -> the authors' name of it."""
PARTS = ("near", "far", "cross")


def stvit(weights: nn.Module, folder: str, *, r: list[int]) -> nn.Module:
    """timm's model, in which the authors' modules stand where our policy `stvit` puts its own: behind the
    attention of the block that reduces, and behind the last one."""
    model, dim, heads = deepcopy(weights), _any(weights).embed_dim, _any(weights).blocks[0].attn.num_heads
    authors = _file(folder, "layers")
    options: dict[str, Any] = {"qkv_bias": True, "norm_layer": partial(nn.LayerNorm, eps=1e-6)}
    near = authors.SemanticAttentionBlock(
        dim,
        heads,
        _file(folder, "multi_scale").multi_scale_semantic_token1,
        window_size=WINDOW,
        sample_window_size=OF_WINDOW,
        shortcut=True,
        **options,
    )
    far, cross = (authors.Block(dim, heads, **options) for _ in range(2))
    like = next(model.parameters())
    for name, block in zip(PARTS, (near, far, cross), strict=True):
        own = semantic_weights(name, dim).items()
        block.load_state_dict({_theirs(key): value for key, value in own})
        block.to(like.dtype).eval()
    return _WithTheirs(model, near, far, cross, r)


class _WithTheirs(nn.Module):
    """timm's model without prefix tokens, whose patches are replaced and recovered."""

    def __init__(self, model: Any, near: nn.Module, far: nn.Module, cross: nn.Module, r: list[int]):
        super().__init__()
        self.model, self.near, self.far, self.cross, self.r = model, near, far, cross, r

    def forward(self, images: Tensor) -> Tensor:
        model, kept = self.model, None
        x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
        for block, count in zip(model.blocks, self.r, strict=True):
            x = x + block.attn(block.norm1(x))
            if count:
                kept, tokens = x, self.near(x)
                x = self.far(tokens, torch.cat([tokens, x], dim=1))
                assert x.shape[1] == kept.shape[1] - count, "as many tokens as the reduction leaves"
            x = x + block.mlp(block.norm2(x))
        x = x if kept is None else self.cross(kept, x)
        return model.forward_head(model.norm(x))


def with_semantic_weights(model: nn.Module) -> None:
    """Sets the parts of our policy in place, to what the peer's have."""
    assert isinstance(model, MultiTaskModel)
    dim = model.backbone.embed_dim
    for kind in (SemanticTokens, Recovery):
        for holder in (part for part in model.modules() if isinstance(part, kind)):
            for name, part in holder.named_children():
                part.load_state_dict(semantic_weights(name, dim))


def semantic_weights(name: str, dim: int) -> Mapping[str, Tensor]:
    """Random tensors of one of PARTS by our names, so large that each branch counts."""
    generator = torch.Generator().manual_seed(PARTS.index(name))
    shapes: dict[str, tuple[int, ...]] = {"scale_1": (dim,), "scale_2": (dim,)}
    shapes |= {f"norm{number}.{kind}": (dim,) for number in (1, 2) for kind in ("weight", "bias")}
    for layer, (rows, columns) in {
        "q": (dim, dim),
        "kv": (2 * dim, dim),
        "proj": (dim, dim),
        "fc1": (4 * dim, dim),
        "fc2": (dim, 4 * dim),
    }.items():
        shapes |= {f"{layer}.weight": (rows, columns), f"{layer}.bias": (rows,)}
    drawn = {key: 0.1 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    ones = [key for key in drawn if key.startswith("scale") or key in ("norm1.weight", "norm2.weight")]
    return drawn | {key: 1 + drawn[key] for key in ones}


def _theirs(key: str) -> str:
    part, dot, kind = key.partition(".")
    return f"{THEIRS[part]}{dot}{kind}"


def _file(folder: str, name: str) -> ModuleType:
    """A file of the authors' folder `models`, whose name another peer's package has."""
    spec = importlib.util.spec_from_file_location(f"stvit_{name}", Path(folder) / f"models/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _any(model: Any) -> Any:
    return model
