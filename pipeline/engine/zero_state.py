"""Where each ZeRO stage keeps weights and moments, behind one set of questions. Works on DeepSpeed's objects,
imports nothing of it.

Weights are fp32 in the module at every stage. Stage 0: every rank holds everything. Stages 1 and 2: every
rank holds the weights, the moments are cut up. Stage 3: the weights are cut up too. All methods that return a
tensor are collectives.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.engine.adamw import GroupAdamW


class ReplicatedState:
    """Stage 0."""

    def __init__(
        self,
        zero: Any,
        optimizer: GroupAdamW,
        groups: Mapping[int, int],
        gather: Callable[..., AbstractContextManager[Any]],
    ):
        """zero: DeepSpeed's optimizer, built around `optimizer`. groups: id of a parameter -> index of its
        group."""
        self.zero, self.optimizer, self.groups, self.gather = zero, optimizer, groups, gather
        self._create_moments()

    def _create_moments(self) -> None:
        self.optimizer.create_state(flat for group in self.optimizer.param_groups for flat in group["params"])

    def whole(self, tensor: Tensor, *, written: bool = False) -> AbstractContextManager[Any]:
        """While it is open, `tensor` is all there; where `written`, rank 0's content is everybody's
        afterwards."""
        return nullcontext()

    def backward(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Open while gradients of `module` are computed."""
        return nullcontext()

    def flat(self, parameter: nn.Parameter) -> Tensor:
        """The tensor that the optimizer updates, of which `parameter` is a part."""
        return parameter

    def step_count(self, parameter: nn.Parameter) -> Tensor:
        return self.optimizer.state[self.flat(parameter)]["step"]

    def moment(self, parameter: nn.Parameter, key: str) -> Tensor:
        return self.optimizer.state[parameter][key]

    def set_moment(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        self.optimizer.state[parameter][key].copy_(value)

    def set_master(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Writes the optimizer's own copy of a weight, where it has one."""

    def forget_gradients(self) -> None:
        """After a step: a parameter that the next step does not use must not meet its old gradient."""


class PartitionedMoments(ReplicatedState):
    """Stages 1 and 2: one flat tensor per parameter group and rank."""

    def _create_moments(self) -> None:
        super()._create_moments()
        self.zero._lazy_init_hp_params_optimizer_state()

    def flat(self, parameter: nn.Parameter) -> Tensor:
        return self.optimizer.param_groups[self.groups[id(parameter)]]["params"][0]

    def moment(self, parameter: Any, key: str) -> Tensor:
        return parameter.get_full_hp_param(key)

    def set_moment(self, parameter: Any, key: str, value: Tensor) -> None:
        parameter.set_full_hp_param(value, key)

    def set_master(self, parameter: Any, value: Tensor) -> None:
        parameter.set_full_hp_param(value)


class PartitionedWeights(ReplicatedState):
    """Stage 3: every parameter is cut into equal parts, the last one padded."""

    def _create_moments(self) -> None:
        self.optimizer.create_state(self.zero.fp32_partitioned_groups_flat)

    def whole(self, tensor: Tensor, *, written: bool = False) -> AbstractContextManager[Any]:
        return (
            self.gather([tensor], modifier_rank=0 if written else None)
            if isinstance(tensor, nn.Parameter)
            else nullcontext()
        )

    def backward(self, module: nn.Module) -> AbstractContextManager[Any]:
        """DeepSpeed gathers a module's weights when the gradient of its output arrives, which it sees in
        tensors, lists and dicts only.

        Our modules that have children exchange dataclasses; what they own themselves (position embedding,
        prefix tokens) is gathered here.
        """
        owners = (part for part in module.modules() if next(part.children(), None) is not None)
        owned = [parameter for owner in owners for parameter in owner.parameters(recurse=False)]
        return self.gather(owned) if owned else nullcontext()

    def flat(self, parameter: nn.Parameter) -> Tensor:
        return self.zero.fp32_partitioned_groups_flat[
            self.zero.grad_position[self.zero.get_param_id(parameter)][0]
        ]

    def moment(self, parameter: nn.Parameter, key: str) -> Tensor:
        return self.zero.get_full_hp_param(parameter, key)

    def set_moment(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        self.zero.set_local_hp_param(self._part(parameter, value), parameter, key)

    def set_master(self, parameter: nn.Parameter, value: Tensor) -> None:
        self.zero.set_local_hp_param(self._part(parameter, value), parameter)

    def forget_gradients(self) -> None:
        self.zero.grad_partitions_flat_buffer.zero_()

    @staticmethod
    def _part(parameter: Any, value: Tensor) -> Tensor:
        """This rank's part of a whole tensor, with zeros where the last part is padded."""
        size, rank = parameter.ds_tensor.numel(), torch.distributed.get_rank()
        part = value.flatten()[rank * size : (rank + 1) * size]
        return nn.functional.pad(part, (0, size - part.numel()))


STATE_OF_STAGE = {0: ReplicatedState, 1: PartitionedMoments, 2: PartitionedMoments, 3: PartitionedWeights}
