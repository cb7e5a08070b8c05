"""Access to the weights and moments of each ZeRO stage by the same methods. They work on DeepSpeed's objects,
but nothing of the package is imported.

Weights are fp32 in the module at every stage. Stage 0: every rank holds everything. Stages 1 and 2: every
rank holds the weights; the moments are divided among the ranks. Stage 3: so are the weights.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.engine.exchange import Piece
from pipeline.engine.optimizer import GroupOptimizer


class ReplicatedState:
    """State of stage 0: every rank holds everything. Base of the other stages."""

    divided = False
    """Whether each rank holds a piece of the moments."""

    def __init__(
        self,
        zero: Any,
        optimizer: GroupOptimizer,
        groups: Mapping[int, int],
        gather: Callable[..., AbstractContextManager[Any]],
    ):
        """zero: DeepSpeed's optimizer, built around `optimizer`. groups: id of a parameter -> index of its
        group."""
        self.zero, self.optimizer, self.groups, self.gather = zero, optimizer, groups, gather
        self._create_moments()

    def _create_moments(self) -> None:
        self.optimizer.create_state()

    def whole(self, tensors: Sequence[Tensor], *, written: bool = False) -> AbstractContextManager[Any]:
        """A context in which the tensors are whole. written: afterwards all ranks have rank 0's content. A
        collective."""
        return nullcontext()

    def backward(self, module: nn.Module) -> AbstractContextManager[Any]:
        """A context in which the gradients of `module` are computed."""
        return nullcontext()

    def flat(self, parameter: nn.Parameter) -> Tensor:
        """The tensor that the optimizer updates; `parameter` is a part of it."""
        return parameter

    def keeps(self, key: str, parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """Those of the parameters of which the optimizer keeps a moment, or `step`."""
        return {
            name: each for name, each in parameters.items() if key in self.optimizer.state[self.flat(each)]
        }

    def step_count(self, parameter: nn.Parameter) -> Tensor:
        return self.optimizer.state[self.flat(parameter)]["step"]

    def moment(self, parameter: Any, key: str) -> Piece:
        """What this rank holds of a moment. Writing to it sets the moment."""
        return Piece(0, self.optimizer.state[parameter][key].view(-1))

    def weights_changed(self, parameter: Any) -> None:
        """Sets the optimizer's own copy of a weight, where it has one, to the weight in the module."""

    def forget_gradients(self) -> None:
        """Clears gradients after a step, so that parameters that the next step does not use have none."""


class PartitionedMoments(ReplicatedState):
    """State of stages 1 and 2: one flat tensor per parameter group and rank."""

    divided = True

    def _create_moments(self) -> None:
        super()._create_moments()
        self.zero._lazy_init_hp_params_optimizer_state()

    def flat(self, parameter: nn.Parameter) -> Tensor:
        return self.optimizer.param_groups[self.groups[id(parameter)]]["params"][0]

    def moment(self, parameter: Any, key: str) -> Piece:
        return self._piece(parameter, key)

    def weights_changed(self, parameter: Any) -> None:
        self._piece(parameter, None).load(parameter)

    def _piece(self, parameter: Any, key: str | None) -> Piece:
        """key: None is the weight."""
        # no part of the parameter is this rank's
        if (mapping := parameter._hp_mapping) is None:
            return Piece(0, self.flat(parameter).new_empty(0))
        return Piece(mapping.lp_fragment_address.start, mapping.get_hp_fragment(key))


class PartitionedWeights(ReplicatedState):
    """State of stage 3: every parameter is divided into equal parts, the last one padded."""

    divided = True

    def _create_moments(self) -> None:
        self.optimizer.create_state(self.zero.fp32_partitioned_groups_flat)

    def whole(self, tensors: Sequence[Tensor], *, written: bool = False) -> AbstractContextManager[Any]:
        parameters = [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]
        return self.gather(parameters, modifier_rank=0 if written else None) if parameters else nullcontext()

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
        return self.zero.fp32_partitioned_groups_flat[self._place(parameter)[0]]

    def moment(self, parameter: Any, key: str) -> Piece:
        return self._piece(parameter, self.optimizer.state[self.flat(parameter)][key])

    def weights_changed(self, parameter: Any) -> None:
        piece = self._piece(parameter, self.flat(parameter))
        piece.tensor.copy_(parameter.ds_tensor.narrow(0, 0, piece.tensor.numel()))

    def forget_gradients(self) -> None:
        self.zero.grad_partitions_flat_buffer.zero_()

    def _place(self, parameter: nn.Parameter) -> tuple[int, int, int]:
        """Index of the flat tensor that the parameter's part is in, where it begins there, and its padded
        size."""
        return self.zero.grad_position[self.zero.get_param_id(parameter)]

    def _piece(self, parameter: Any, flat: Tensor) -> Piece:
        """The parameter's part of a flat tensor, without padding."""
        _, place, size = self._place(parameter)
        start = min(torch.distributed.get_rank() * size, parameter.ds_numel)
        return Piece(start, flat.narrow(0, place, min(size, parameter.ds_numel - start)))


STATE_OF_STAGE = {0: ReplicatedState, 1: PartitionedMoments, 2: PartitionedMoments, 3: PartitionedWeights}
