"""The engine of PyTorch's FSDP2 (`fully_shard`): weights, gradients and moments are divided over ranks."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from pipeline.config.schema import RunConfig
from pipeline.engine.connect import connect
from pipeline.engine.exchange import Piece, collect, fill, on_host
from pipeline.engine.model_on_device import ModelOnDevice
from pipeline.engine.optimizer import mark_nonfinite
from pipeline.engine.optimizers import build_optimizer
from pipeline.interfaces import Batch, StepSpec, TaskOutput
from pipeline.model import MultiTaskModel


class ShardedEngine(ModelOnDevice[MultiTaskModel]):
    """An `Engine` of several processes. Each block is gathered for its forward and backward pass alone, the
    rest of the model for both.

    The optimizer updates this rank's rows of each parameter in place. `parameter_groups` hold the divided
    parameters from now on.
    """

    forward_is_collective = True
    trains = True

    def __init__(self, config: RunConfig, model: MultiTaskModel, parameter_groups: Sequence[dict[str, Any]]):
        connect(config.engine.start_timeout)
        super().__init__(model, config.engine.precision)
        self._clip = config.optim.clip_grad
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        stored = model.state_dict().keys()
        self._buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored}
        self._shared = _shared_names(model)
        self._divided = _divide(model, self.device)
        rows = {name: nn.Parameter(each.to_local().detach()) for name, each in self._divided.items()}
        groups = []
        for group in parameter_groups:
            members = [names[id(parameter)] for parameter in group["params"]]
            group["params"] = [self._divided[name] for name in members]
            groups.append(group | {"params": [rows[name] for name in members]})
        self._trained = {name: rows[name] for name, each in self._divided.items() if each.requires_grad}
        self._rows = rows
        self._optimizer = build_optimizer(config.optim, groups)
        self._optimizer.create_state()

    def forward(self, batch: Batch, spec: StepSpec) -> TaskOutput:
        with self.autocast():
            return self.module(batch, spec)

    def backward(self, loss: Tensor, *, last: bool, retain: bool = False) -> None:
        _sharded(self.module).set_requires_gradient_sync(last)
        mark_nonfinite(loss).backward(retain_graph=retain)

    def step(self, lrs: Mapping[str, float]) -> Tensor:
        """A group whose lr is 0 rests: its gradients do not count."""
        self._optimizer.set_lrs(lrs)
        groups = self._optimizer.param_groups
        resting = {id(row) for group in groups if group["lr"] == 0 for row in group["params"]}
        for name, row in self._trained.items():
            row.grad = None if id(row) in resting else self._gradient(name)
        norm = self._optimizer.clip(list(self._trained.values()), self._clip, self)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.module.zero_grad()
        return norm

    @torch.no_grad()
    def copied_state(self) -> Callable[[], dict[str, Tensor]]:
        kinds = {"model": self._rows}
        kinds |= {
            key: {name: self._moment(name, key) for name in self._trained} for key in self._optimizer.moments
        }
        pieces = {
            f"{kind}.{name}": self._piece(name, row)
            for kind, rows in kinds.items()
            for name, row in rows.items()
        }
        shapes = {name: self._divided[name.partition(".")[2]].shape for name in pieces}
        wholes = collect(self, pieces, shapes)
        if self.rank > 0:
            return dict
        kept = {f"model.{name}": buffer for name, buffer in self._buffers.items()}
        kept |= {f"step.{name}": count for name, count in self._counts().items()}
        return partial(self._put_together, wholes, on_host(kept))

    def state_tensors(self) -> dict[str, Tensor]:
        return self.copied_state()()

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        _sharded(self.module).reshard()
        for name, row in self._rows.items():
            self._piece(name, row).load(tensors[f"model.{name}"])
        for name in self._trained:
            for key in self._optimizer.moments:
                self._piece(name, self._moment(name, key)).load(tensors[f"{key}.{name}"])
        for name, count in self._counts().items():
            count.copy_(tensors[f"step.{name}"])
        fill(self, {f"model.{name}": buffer for name, buffer in self._buffers.items()}, tensors)

    def _gradient(self, name: str) -> Tensor:
        """That of this rank's rows; zeros where no micro-batch used the parameter."""
        gradient = self._divided[name].grad
        if gradient is None:
            return torch.zeros_like(self._rows[name])
        assert isinstance(gradient, DTensor)
        return gradient.to_local()

    def _moment(self, name: str, key: str) -> Tensor:
        return self._optimizer.state[self._trained[name]][key]

    def _counts(self) -> dict[str, Tensor]:
        """Counts of steps, where the optimizer keeps such."""
        states = {name: self._optimizer.state[row] for name, row in self._trained.items()}
        return {name: state["step"] for name, state in states.items() if "step" in state}

    def _piece(self, name: str, row: Tensor) -> Piece:
        """This rank's rows as a part of the whole: all ranks but the last ones have equally many."""
        shape = self._divided[name].shape
        most = -(-shape[0] // self.world_size)
        start = min(self.rank * most, shape[0]) * shape[1:].numel()
        return Piece(start, row.view(-1))

    def _put_together(
        self, wholes: Callable[[], dict[str, Tensor]], kept: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        found = wholes() | dict(kept)
        for name, first in self._shared:
            found[f"model.{name}"] = found[f"model.{first}"]
        return found


def _shared_names(model: MultiTaskModel) -> list[tuple[str, str]]:
    """(other name, name) of parameters that have several names."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    found = [(name, first.setdefault(id(parameter), name)) for name, parameter in named]
    return [(name, known) for name, known in found if name != known]


def _divide(model: MultiTaskModel, device: torch.device) -> dict[str, DTensor]:
    """Divides the parameters of the model over all ranks, by rows. Returns them by name."""
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in model.backbone.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "evaluate")
    register_fsdp_forward_method(model, "as_forward")
    return {name: parameter for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)}


def _sharded(module: nn.Module) -> FSDPModule:
    assert isinstance(module, FSDPModule)
    return module
