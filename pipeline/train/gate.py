"""What rests in a step receives no gradient."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class GradientGate:
    """Makes the gradients of resting kinds exactly zero, on the leaf, before any engine sees or sums them.

    The factor is a device scalar, so closing and opening asks the device nothing; it works under every ZeRO
    stage.
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
