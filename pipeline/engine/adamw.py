"""The optimizer of both engines: AdamW in which a group can rest, and the device can skip a step."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from pipeline.ranks import Ranks

MOMENTS = ("exp_avg", "exp_avg_sq")


class GroupAdamW(torch.optim.AdamW):
    """torch's fused AdamW with two more rules.

    A group whose lr is 0 rests: its weights, moments and step count stay as they are (alternating training).
    Where `clip` found a norm that is not finite, all groups rest; the host does not wait for it.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], betas: tuple[float, float]):
        super().__init__([dict(group) for group in groups], lr=0.0, betas=betas, fused=True)
        self.found_inf: Tensor | None = None
        self.grad_scale: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Updates the groups whose lr is above 0. closure: of torch's signature; it is not called."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if group["lr"] > 0]
        try:
            super().step()
        finally:
            self.param_groups = groups

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
        self.found_inf = (~norm.isfinite()).float()
        return norm

    def create_state(self, params: Iterable[Tensor]) -> None:
        """Creates zero moments of these tensors, so that they can be saved and loaded before the first
        step."""
        for param in params:
            zeros = {name: torch.zeros_like(param, memory_format=torch.preserve_format) for name in MOMENTS}
            self.state[param] = {"step": torch.zeros((), dtype=torch.float32, device=param.device), **zeros}


def mark_nonfinite(loss: Tensor) -> Tensor:
    """The loss, with a gradient that is NaN where the loss is not finite.

    The gradient is summed over ranks, so every rank learns from it to skip the step.
    """
    return loss * torch.where(loss.isfinite(), 1.0, torch.nan).detach()
