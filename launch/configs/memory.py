"""An estimate of the memory of a rank in training.

Weights, gradients, the moments of the optimizer and averages are counted by the parameters, divided as the
engine divides them. What the backward pass needs is counted in forward passes of one and of two fake samples
on the CPU, and scaled to the micro-batch. Not in it: the CUDA context (about half a GiB), buffers of
communication, the workspace of single operations, and what the allocator loses to fragments. So the real peak
is larger.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from launch.configs.fake import fake_batch
from launch.configs.prepared import Prepared
from pipeline.config.schema import RunConfig
from pipeline.engine import divides_weights
from pipeline.engine.model_on_device import autocast
from pipeline.engine.optimizer import GroupOptimizer
from pipeline.engine.optimizers import OPTIMIZERS
from pipeline.modes import set_modes
from pipeline.train.groups import parameter_groups
from pipeline.train.steps import build_procedure

FP32 = 4
"""Bytes of a number. Weights, gradients and moments are fp32 under every precision."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank."""

    weights: int
    gradients: int
    moments: int
    averages: int
    activations: Mapping[str, int]
    """Of one micro-batch of each task, of which the largest counts."""

    @property
    def total(self) -> int:
        fixed = self.weights + self.gradients + self.moments + self.averages
        return fixed + max(self.activations.values(), default=0)


def estimate(prepared: Prepared) -> Memory:
    """The estimate for the run's engine, ranks and micro-batches."""
    config = prepared.config
    weights, gradients, moments = _divided(config, prepared.resolved.world_size)
    fed, trained = prepared.resolved.micro_batches, _trained(prepared)
    return Memory(
        weights=_weights(prepared) // weights,
        gradients=trained // gradients,
        moments=_moments(prepared) // moments,
        averages=trained if config.optim.ema_decay else 0,
        activations={task: _activations(prepared, task) for task in fed},
    )


def checkpoint_bytes(prepared: Prepared) -> int:
    """Bytes of a checkpoint: weights, moments and averages of all ranks together."""
    averages = _trained(prepared) if prepared.config.optim.ema_decay else 0
    return _weights(prepared) + _moments(prepared) + averages


def _weights(prepared: Prepared) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in prepared.model.state_dict().values())


def _trained(prepared: Prepared) -> int:
    return FP32 * sum(item.numel() for item in prepared.model.parameters() if item.requires_grad)


def _moments(prepared: Prepared) -> int:
    config = prepared.config
    kept = OPTIMIZERS.get(config.optim.type)
    assert isinstance(kept, type) and issubclass(kept, GroupOptimizer), "an optimizer is a class"
    return sum(
        tensor.numel() * tensor.element_size()
        for group in parameter_groups(prepared.model, config)
        for parameter in group["params"]
        for tensor in kept.new_state(parameter.detach().to("meta"), group).values()
        if isinstance(tensor, Tensor)
    )


def _divided(config: RunConfig, ranks: int) -> tuple[int, int, int]:
    """Among how many ranks weights, gradients and moments are divided."""
    if config.engine.type == "fsdp":
        return ranks, ranks, ranks
    stage = config.engine.zero_stage if config.engine.type == "deepspeed" else 0
    weights = ranks if divides_weights(config) else 1
    return weights, ranks if stage >= 2 else 1, ranks if stage >= 1 else 1


def _activations(prepared: Prepared, task: str) -> int:
    one, two = (_saved_bytes(prepared, task, size) for size in (1, 2))
    return one + (two - one) * (prepared.config.tasks[task].data.batch_size - 1)


def _saved_bytes(prepared: Prepared, task: str, size: int) -> int:
    """Bytes that a forward pass of `size` samples keeps for its backward pass, weights aside."""
    model, batch = prepared.model, fake_batch(prepared, task, size)
    procedure = build_procedure(prepared.config)
    # embeddings and backbone in turn: the step that needs more
    specs = [procedure.spec(step) for step in range(prepared.config.train.alternate_period)]
    found = []
    for spec in dict.fromkeys(specs):
        kept = _Kept({tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()})
        set_modes(model, spec.trains)
        with (
            torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda tensor: tensor),
            autocast(torch.device("cpu"), prepared.config.engine.precision),
        ):
            model(batch, spec)
        found.append(kept.total)
    return max(found)


class _Kept:
    """Adds up the storages that autograd keeps, each once."""

    def __init__(self, weights: set[int]):
        self._seen, self.total = set(weights), 0
        self._alive: list[Any] = []

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            # kept, so that no other tensor gets its address
            self._alive.append(storage)
            self.total += storage.nbytes()
        return tensor
