"""A model on this process's device, under the precision of the run: the base of all engines, and enough for
evaluation."""

from typing import Generic, TypeVar

import torch

from pipeline.engine import launched
from pipeline.engine.protocol import Evaluated
from pipeline.interfaces import Batch, Tallies
from pipeline.merging.schedule import AnyReduction
from pipeline.ranks import Processes

E = TypeVar("E", bound=Evaluated)


class ModelOnDevice(Processes, Generic[E]):
    """An `Evaluator`. precision: `fp32`, or `bf16`, which is autocast: the weights are fp32 either way."""

    forward_is_collective = False

    def __init__(self, module: E, precision: str):
        """Moves the module to the device. The processes have to be connected before."""
        super().__init__(launched.device())
        self.module, self.precision = module, precision
        module.to(self.device)

    def autocast(self) -> torch.autocast:
        return autocast(self.device, self.precision)

    def evaluate(self, batch: Batch, *, reduction: AnyReduction | None = None) -> Tallies:
        with self.autocast(), torch.no_grad():
            return self.module.evaluate(batch, reduction=reduction)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a forward pass under a precision, see `ModelOnDevice`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
