"""A model on this process's device, under the precision of the run: the base of all engines, and enough for
evaluation."""

from typing import Any, cast

import torch
from torch import nn

from pipeline.engine import launched
from pipeline.interfaces import Batch, Tallies
from pipeline.ranks import Processes


class ModelOnDevice(Processes):
    """An `Evaluator`. precision: `fp32`, or `bf16`, which is autocast: the weights are fp32 either way."""

    forward_is_collective = False

    def __init__(self, module: nn.Module, precision: str):
        """Moves the module to the device. The processes have to be connected before."""
        super().__init__(launched.device())
        self.module, self.precision = module.to(self.device), precision

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def evaluate(self, batch: Batch, **options: Any) -> Tallies:
        with self.autocast(), torch.no_grad():
            return cast(Any, self.module).evaluate(batch, **options)
