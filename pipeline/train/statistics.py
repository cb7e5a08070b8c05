"""Running statistics of norms. Each forward moves them at once, so a step that is skipped has to take that
back."""

import torch
from torch import Tensor, nn


class RunningStatistics:
    """The floating-point buffers of a module as they are when this is made."""

    def __init__(self, module: nn.Module):
        self._buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        self._before = self._flat()

    @torch.no_grad()
    def restore(self, skipped: Tensor) -> None:
        """As they were, where `skipped`, a bool scalar on the device, is True. Asks the device nothing."""
        values = torch.where(skipped, self._before, self._flat()).split(
            [buffer.numel() for buffer in self._buffers]
        )
        for buffer, value in zip(self._buffers, values, strict=True):
            buffer.copy_(value.view_as(buffer))

    def _flat(self) -> Tensor:
        """All numbers behind one another, a copy."""
        return torch.cat([buffer.flatten() for buffer in self._buffers]) if self._buffers else torch.empty(0)
