"""Running statistics of norms. Every forward changes them, so a step that is skipped has to restore them."""

import torch
from torch import Tensor, nn


class RunningStatistics:
    """A copy of the floating-point buffers of a module."""

    def __init__(self, module: nn.Module):
        self._buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        self._before = self._flat() if self._buffers else torch.empty(0)

    @torch.no_grad()
    def restore(self, skipped: Tensor) -> None:
        """Sets the buffers to the copy where `skipped`, a bool scalar on the device, is True. The host does
        not wait for the device."""
        if not self._buffers:
            return
        values = torch.where(skipped, self._before, self._flat()).split(
            [buffer.numel() for buffer in self._buffers]
        )
        for buffer, value in zip(self._buffers, values, strict=True):
            buffer.copy_(value.view_as(buffer))

    def _flat(self) -> Tensor:
        """A copy of all numbers in one vector."""
        return torch.cat([buffer.flatten() for buffer in self._buffers])
