"""Tensors that depend on sizes alone: made once for each device, as the host would else wait for the device
in each merge."""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor


class MadeOnce:
    """Tensors by a key of plain values. most: how many are kept; a model has one for each block and size of
    image."""

    def __init__(self, most: int = 1024):
        self._most = most
        self._made: dict[Hashable, tuple[Tensor, ...]] = {}

    def get(self, key: Hashable, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What was made for the key, else what `make` gives. Those of a trace are not kept."""
        if (known := self._made.get(key)) is not None:
            return known
        with torch.inference_mode(False):  # what is made under it could not be used in training
            made = make()
        if all(type(tensor) is Tensor for tensor in made):
            if len(self._made) >= self._most:
                self._made.clear()
            self._made[key] = made
        return made
