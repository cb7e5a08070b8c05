"""A model on this process's device, under the precision of the run: the base of all engines, and enough for
evaluation."""

from contextlib import AbstractContextManager
from typing import Generic, TypeVar

import torch
from torch import nn

from pipeline.backbone.compiled import is_compiled
from pipeline.engine import launched
from pipeline.engine.protocol import Evaluated
from pipeline.interfaces import Batch, Tallies
from pipeline.merging.schedule import AnyReduction
from pipeline.ranks import Processes

E = TypeVar("E", bound=Evaluated)


class ModelOnDevice(Processes, Generic[E]):
    """An `Evaluator`. precision: `fp32`, or `bf16`, which is autocast: the weights are fp32 either way."""

    forward_is_collective = False
    trains = False
    """Whether the module learns in this process; what inference mode leaves behind could not."""

    def __init__(self, module: E, precision: str):
        """Moves the module to the device. The processes have to be connected before."""
        super().__init__(launched.device())
        self.module, self.precision = module, precision
        module.to(self.device)
        self._compiled = isinstance(module, nn.Module) and is_compiled(module)

    def autocast(self) -> torch.autocast:
        return autocast(self.device, self.precision)

    def evaluate(self, batch: Batch, *, reduction: AnyReduction | None = None) -> Tallies:
        with self.autocast(), without_gradients(eager=not (self.trains or self._compiled)):
            return self.module.evaluate(batch, reduction=reduction)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a forward pass under a precision, see `ModelOnDevice`."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def without_gradients(*, eager: bool) -> AbstractContextManager[object]:
    """The context of a forward pass that nobody differentiates. eager: by operations, for a model that will
    not learn in this process: in inference mode, in which each operation costs the host less."""
    return torch.inference_mode() if eager else torch.no_grad()
