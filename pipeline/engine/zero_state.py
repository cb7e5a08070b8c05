"""Access to the weights and moments of each ZeRO stage by the same methods. They work on DeepSpeed's objects,
but nothing of the package is imported.

Weights are fp32 in the module at every stage. Stage 0: every rank holds everything. Stages 1 and 2: every
rank holds the weights; the moments are divided among the ranks. Stage 3: so are the weights. All methods that
return a tensor are collectives.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.engine.adamw import GroupAdamW


class ReplicatedState:
    """State of stage 0: every rank holds everything. Base of the other stages."""

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
        """A context in which `tensor` is whole. written: afterwards all ranks have rank 0's content."""
        return nullcontext()

    def backward(self, module: nn.Module) -> AbstractContextManager[Any]:
        """A context in which the gradients of `module` are computed."""
        return nullcontext()

    def flat(self, parameter: nn.Parameter) -> Tensor:
        """The tensor that the optimizer updates; `parameter` is a part of it."""
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
        """Clears gradients after a step, so that parameters that the next step does not use have none."""


class PartitionedMoments(ReplicatedState):
    """State of stages 1 and 2: one flat tensor per parameter group and rank."""

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
    """State of stage 3: every parameter is divided into equal parts, the last one padded."""

    def _create_moments(self) -> None:
        self.optimizer.create_state(self.zero.fp32_partitioned_groups_flat)

    def whole(self, tensor: Tensor, *, written: bool = False) -> AbstractContextManager[Any]:
        return (
            self.gather([tensor], modifier_rank=0 if written else None)
            if isinstance(tensor, nn.Parameter)
            else nullcontext()
        )

    def backward(self, module: nn.Module) -> AbstractContextManager[Any]:
        """A context that gathers the parameters which modules with children own themselves, such as the
        position embedding and prefix tokens.

        DeepSpeed gathers a module's weights when the gradient of its output arrives, in tensors, lists and
        dicts only; these modules return dataclasses.
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
