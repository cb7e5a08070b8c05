"""The gate of gradients: parameters that rest in a step receive none."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class GradientGate:
    """Makes the gradients of resting kinds exactly zero, on the parameter, before any engine sees or sums
    them.

    The factor is a device scalar, so the host never waits for the device. It works at every ZeRO stage.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], device: torch.device):
        self._open = {group["kind"]: torch.ones((), device=device) for group in groups}
        for group in groups:
            for parameter in group["params"]:
                parameter.register_hook(self._hook(self._open[group["kind"]]))

    @staticmethod
    def _hook(factor: Tensor):
        return lambda gradient: gradient * factor

    def open(self, kinds: frozenset[str]) -> None:
        """From now on only these kinds receive gradients."""
        for kind, factor in self._open.items():
            factor.fill_(float(kind in kinds))
