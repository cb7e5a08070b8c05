"""The engine of one process, in plain PyTorch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.config.schema import RunConfig
from pipeline.engine.exchange import on_host
from pipeline.engine.model_on_device import ModelOnDevice
from pipeline.engine.optimizer import mark_nonfinite
from pipeline.engine.optimizers import build_optimizer
from pipeline.interfaces import Batch, StepSpec, TaskOutput
from pipeline.model import MultiTaskModel
from pipeline.parts import trained_parameters


class LocalEngine(ModelOnDevice[MultiTaskModel]):
    """Accumulates, clips and updates in fp32 (weights, gradients and moments); bf16 is autocast."""

    trains = True

    def __init__(
        self, config: RunConfig, model: MultiTaskModel, parameter_groups: Sequence[Mapping[str, Any]]
    ):
        super().__init__(model, config.engine.precision)
        self._clip = config.optim.clip_grad
        self._params = [parameter for group in parameter_groups for parameter in group["params"]]
        self._optimizer = build_optimizer(config.optim, parameter_groups)
        self._optimizer.create_state()

    def forward(self, batch: Batch, spec: StepSpec) -> TaskOutput:
        with self.autocast():
            return self.module(batch, spec)

    def backward(self, loss: Tensor, *, last: bool, retain: bool = False) -> None:
        mark_nonfinite(loss).backward(retain_graph=retain)

    def step(self, lrs: Mapping[str, float]) -> Tensor:
        """A parameter that no loss reached has a gradient of 0 here, as under all engines: its moments and
        weight decay go on."""
        for parameter in self._params:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = self._optimizer.clip(self._params, self._clip)
        self._optimizer.set_lrs(lrs)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return norm

    def copied_state(self) -> Callable[[], dict[str, Tensor]]:
        tensors = {f"model.{name}": tensor for name, tensor in self.module.state_dict().items()}
        tensors |= self._moments()
        copies = on_host(tensors)
        return lambda: copies

    def state_tensors(self) -> dict[str, Tensor]:
        return self.copied_state()()

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self.module.state_dict().items():
            tensor.copy_(tensors[f"model.{name}"])
        for name, tensor in self._moments().items():
            tensor.copy_(tensors[name])

    def _moments(self) -> dict[str, Tensor]:
        """All tensors that the optimizer keeps, by the names that they have in a checkpoint."""
        return {
            f"{key}.{name}": tensor
            for name, parameter in trained_parameters(self.module).items()
            for key, tensor in self._optimizer.state[parameter].items()
            if isinstance(tensor, Tensor)
        }
