"""The gate of gradients: parameters that rest in a step receive none."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class GradientGate:
    """Makes the gradients of resting kinds exactly zero, on the parameter, before any engine sees or sums
    them.

    A gradient that is not finite becomes zero too. Whether a kind rests is a device scalar, so the host never
    waits for the device. It works at every ZeRO stage. A kind that never rests costs nothing: its parameters
    have no hooks.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], device: torch.device):
        self._groups, self._device = list(groups), device
        self._kinds = {group["kind"] for group in groups}
        self._rests: dict[str, Tensor] = {}

    def open(self, kinds: frozenset[str]) -> None:
        """From now on only these kinds receive gradients."""
        for kind in self._kinds - kinds - self._rests.keys():
            self._watch(kind)
        for kind, rests in self._rests.items():
            rests.fill_(kind not in kinds)

    def _watch(self, kind: str) -> None:
        rests = self._rests[kind] = torch.zeros((), dtype=torch.bool, device=self._device)
        for group in self._groups:
            for parameter in group["params"] if group["kind"] == kind else ():
                parameter.register_hook(lambda gradient: gradient.masked_fill(rests, 0.0))
