"""Others' models beside ours, on the same weights, read from where the caller keeps their code.

Nothing of it is in this repository (`peer_paths`). All attend by size, as ours do, and none traces sources.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

T = TypeVar("T")


def release(weights: nn.Module, path: str, *, r: int) -> nn.Module:
    """The authors' DTEM."""
    spec = importlib.util.spec_from_file_location("dtem_release", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(1)
    model = module.patch_deit(deepcopy(weights))
    model.update_r(r)
    return model


def tome(weights: nn.Module, folder: str, *, r: int) -> nn.Module:
    """The authors' ToMe."""
    model = deepcopy(weights)
    package(folder, "tome.patch.timm").apply_patch(model)
    model.r = r
    return model


def opentome_tome(weights: nn.Module, folder: str, *, r: int) -> nn.Module:
    model = deepcopy(weights)
    package(folder, "opentome.timm.tome").tome_apply_patch(model, trace_source=False)
    model.r = r
    return model


def opentome_dtem(weights: nn.Module, folder: str, *, r: int) -> nn.Module:
    model = deepcopy(weights)
    torch.manual_seed(1)
    package(folder, "opentome.timm.dtem").dtem_apply_patch(model, trace_source=False)
    model.r = r
    return model


def opentome_pitome(weights: nn.Module, folder: str, *, r: int | list[int]) -> nn.Module:
    model = deepcopy(weights)
    package(folder, "opentome.timm.pitome").pitome_apply_patch(model)
    model.r = r  # pyright: ignore[reportAttributeAccessIssue]
    return model


def opentome_tofu(weights: nn.Module, folder: str, *, r: int | list[int]) -> nn.Module:
    model = deepcopy(weights)
    package(folder, "opentome.timm.tofu").tofu_apply_patch(model)
    model.r = r  # pyright: ignore[reportAttributeAccessIssue]
    return model


def mctf(weights: nn.Module, folder: str, *, r: list[int]) -> nn.Module:
    """The authors' MCTF with their settings. r: 0 in blocks that do not merge, and the same in all others."""
    vit: Any = weights
    model = package(folder, "models.deit").VisionTransformer(
        num_classes=vit.num_classes,
        embed_dim=vit.embed_dim,
        depth=len(vit.blocks),
        num_heads=vit.blocks[0].attn.num_heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_mctf=True,
        activate_layer=[block for block, removed in enumerate(r) if removed],
        task_type=[1, 0, 0],
        mctf_type=[max(r), 0, 0, 1, 1, 1, 20, 40, 1, 1, 0],
    )
    model.load_state_dict(weights.state_dict())
    return model.to(vit.cls_token.dtype)


MODELS: dict[str, tuple[str, Callable[..., nn.Module]]] = {
    "release": ("dtem", release),
    "tome": ("tome", tome),
    "opentome_tome": ("opentome", opentome_tome),
    "opentome_dtem": ("opentome", opentome_dtem),
}
"""Name of a model -> the peer that it comes from, and how it is built."""


def peer_models(weights: nn.Module, peers: Mapping[str, str], *, r: int) -> dict[str, nn.Module]:
    """The models of the peers that are given and can be imported; of the others it says why not."""
    found = {}
    for name, (peer, build) in MODELS.items():
        if peer in peers:
            try:
                found[name] = build(weights, peers[peer], r=r)
            except Exception as err:  # whatever a stranger's code raises
                say_failed(name, err)
    return found


def working(
    builds: Mapping[str, Callable[[], Callable[[], T]]], others: Collection[str]
) -> dict[str, Callable[[], T]]:
    """What the functions build, each called once. What is not ours and fails is left out, and it says why.

    others: names of what is not ours.
    """
    found = {}
    for name, build in builds.items():
        try:
            call = build()
            call()
        except Exception as err:
            if name not in others:
                raise
            say_failed(name, err)
        else:
            found[name] = call
    return found


def say_failed(name: str, err: Exception) -> None:
    reason = str(err).strip().partition("\n")[0]
    print(f"  peer {name} does not run here: {type(err).__name__}: {reason}", flush=True)


def package(folder: str, module: str):  # noqa: ANN202
    """A module of a folder."""
    place = str(Path(folder).resolve())
    if place not in sys.path:
        sys.path.insert(0, place)
    return importlib.import_module(module)
