"""Joining of layers that other projects keep apart and timm in one."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_PART = re.compile(r"^(.+\.)(q_proj|k_proj|v_proj|gate_proj|up_proj)\.(weight|bias)$")
_JOINED = {"qkv": ("q_proj", "k_proj", "v_proj"), "fc1": ("gate_proj", "up_proj")}
"""timm's layer -> the layers in its place, in the order of its rows. An `up_proj` without a gate is `fc1`."""


def joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with queries, keys and values in one layer, `qkv`, and a gate with what it gates in one,
    `fc1`. A bias that one of them lacks is 0. A layer without a weight stays as it is."""
    parts = {match.groups(): key for key in tensors if (match := _PART.match(key))}
    rest = dict(tensors)
    for place in sorted({place for place, _, _ in parts}):
        for layer, names in _JOINED.items():
            there = [name for name in names if (place, name, "weight") in parts]
            if not there:
                continue
            keys = {kind: [parts.get((place, name, kind)) for name in there] for kind in ("weight", "bias")}
            weights = [rest.pop(str(key)) for key in keys["weight"]]
            biases = [None if key is None else rest.pop(key) for key in keys["bias"]]
            rest[f"{place}{layer}.weight"] = torch.cat(weights)
            if any(bias is not None for bias in biases):
                rest[f"{place}{layer}.bias"] = _with_zeros(biases, weights)
    return rest


def _with_zeros(biases: Sequence[Tensor | None], weights: Sequence[Tensor]) -> Tensor:
    pairs = zip(biases, weights, strict=True)
    return torch.cat([weight.new_zeros(len(weight)) if bias is None else bias for bias, weight in pairs])
