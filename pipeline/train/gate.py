"""The gate of gradients: parameters that rest in a step receive none."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class GradientGate:
    """Makes the gradients of resting kinds exactly zero, on the parameter, before any engine sees or sums
    them.

    A gradient that is not finite becomes zero too. Whether a kind rests is a device scalar, so the host never
    waits for the device. It works at every ZeRO stage.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], device: torch.device):
        kinds = {group["kind"] for group in groups}
        self._rests = {kind: torch.zeros((), dtype=torch.bool, device=device) for kind in kinds}
        for group in groups:
            for parameter in group["params"]:
                parameter.register_hook(self._hook(self._rests[group["kind"]]))

    @staticmethod
    def _hook(rests: Tensor):
        return lambda gradient: gradient.masked_fill(rests, 0.0)

    def open(self, kinds: frozenset[str]) -> None:
        """From now on only these kinds receive gradients."""
        for kind, rests in self._rests.items():
            rests.fill_(kind not in kinds)
