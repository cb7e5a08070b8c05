"""What an optimizer of all engines can do: a group can rest, a step can be skipped, and its state is there
before the first step."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from pipeline.ranks import Ranks


class GroupOptimizer(Optimizer):
    """Base beside an optimizer of torch or timm, in front of which it stands: `class X(GroupOptimizer, Y)`.

    A group whose lr is 0 rests: its weights, moments and step count stay as they are (alternating training).
    Where `clip` found a norm that is not finite, all groups rest.
    """

    moments: ClassVar[tuple[str, ...]]
    """Names of the tensors that it may keep of a parameter, of the parameter's shape. Beside them it may keep
    a count of steps, `step`."""
    elementwise: ClassVar[bool] = True
    """Whether it moves each number by itself, so that a rank may hold any part of a parameter."""
    for_matrices: ClassVar[bool] = False
    """Whether it moves matrices of the backbone's blocks in a way of their own (groups with `matrix`)."""
    skips_on_device: ClassVar[bool] = False
    """Whether it reads `found_inf` on the device, as torch's fused ones do. Else the host waits for the norm
    in every step."""

    def __init__(self, groups: Sequence[Mapping[str, Any]], **options: Any):
        arguments: dict[str, Any] = {"lr": 0.0, **options}
        super().__init__([dict(group) for group in groups], **arguments)
        self.found_inf: Tensor | None = None
        self.grad_scale: Tensor | None = None
        self._nonfinite: Tensor | None = None

    @classmethod
    def new_state(cls, param: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        """The state of a parameter before its first step: zero moments, and what else the optimizer keeps."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Updates the groups whose lr is above 0. closure: of torch's signature; it is not called."""
        if not self.skips_on_device and self._nonfinite is not None and bool(self._nonfinite):
            return None
        groups = self.param_groups
        self.param_groups = [group for group in groups if group["lr"] > 0]
        try:
            super().step()
        finally:
            self.param_groups = groups
        return None

    def set_lrs(self, lrs: Mapping[str, float]) -> None:
        for group in self.param_groups:
            group["lr"] = lrs[group["name"]]

    def clip(
        self, parameters: Sequence[Tensor], max_norm: float | None, divided: Ranks | None = None
    ) -> Tensor:
        """Scales the gradients to a total norm of at most max_norm; None leaves them. Returns the norm before
        that, a scalar on the device; where it is not finite, `step` changes nothing. divided: the ranks that
        hold a part of the gradients each; None: this one holds all of them."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = get_total_norm(gradients, foreach=True)
        if divided is not None:
            norm = divided.all_reduce(norm.square()).sqrt()
        if max_norm is not None:
            clip_grads_with_norm_(parameters, max_norm, norm, foreach=True)
        self._nonfinite = ~norm.isfinite()
        if self.skips_on_device:
            self.found_inf = self._nonfinite.float()
        return norm

    def create_state(self, params: Iterable[Tensor] | None = None) -> None:
        """Creates the state of all parameters, so that it can be saved and loaded before the first step.
        params: tensors that an engine will put in their place, for an optimizer that is `elementwise`."""
        if params is not None:
            for param in params:
                self.state[param] = self.new_state(param, {})
            return
        for group in self.param_groups:
            for param in group["params"]:
                self.state[param] = self.new_state(param, group)


def zeros(param: Tensor, names: Sequence[str]) -> dict[str, Any]:
    return {name: torch.zeros_like(param, memory_format=torch.preserve_format) for name in names}


def mark_nonfinite(loss: Tensor) -> Tensor:
    """The loss, with a gradient that is NaN where the loss is not finite.

    The gradient is summed over ranks, so every rank learns from it to skip the step.
    """
    return loss * torch.where(loss.isfinite(), 1.0, torch.nan).detach()
