"""Balancing: the weights of the losses of several tasks. Each class is a part of the model, so that its state
is saved with it.

T tasks, in the order of the configuration.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.config.schema import BalancingConfig
from pipeline.errors import ConfigError
from pipeline.parts import BALANCE, ParametersOfTasks
from pipeline.registry import Registry

BALANCING: Registry["Balancing"] = Registry("balancing")


class Balancing(nn.Module):
    """Weighs the losses of tasks. weights: maps a task to its weight in the configuration."""

    part_kind = BALANCE

    def __init__(self, weights: Mapping[str, float]):
        super().__init__()
        self.names, self._start = tuple(weights), dict(weights)

    def forward(self, task: str, loss: Tensor) -> tuple[Tensor, Tensor | None]:
        """The weighed loss of a task, and its weight, detached, if that changes in training. loss: a
        scalar."""
        raise NotImplementedError

    def follow(self, norms: Tensor, losses: Tensor) -> None:
        """Adapts the weights to a measurement. norms [T]: norms of the tasks' weighed gradients on shared
        parameters. losses [T]: losses of the same batches, not weighed. Both are the same on all ranks."""


@BALANCING.register("fixed")
class Fixed(Balancing):
    """The weights of the configuration."""

    def forward(self, task: str, loss: Tensor) -> tuple[Tensor, None]:
        return loss * self._start[task], None


@BALANCING.register("uncertainty")
class Uncertainty(Balancing):
    """weight * (exp(-s) * loss + s / 2) with a learned s = log sigma^2 of each task (Kendall, Gal and
    Cipolla, CVPR 2018, eq. 10)."""

    def __init__(self, weights: Mapping[str, float]):
        super().__init__(weights)
        # vectors of one element, as DeepSpeed takes no scalars
        self.log_variance = ParametersOfTasks({name: nn.Parameter(torch.zeros(1)) for name in weights})

    def forward(self, task: str, loss: Tensor) -> tuple[Tensor, Tensor]:
        s, start = self.log_variance[task].squeeze(), self._start[task]
        return start * (torch.exp(-s) * loss + s / 2), start * torch.exp(-s.detach())


@BALANCING.register("gradient_norm")
class GradientNorm(Balancing):
    """Weights that make the norms of the tasks' gradients on shared parameters alike (after GradNorm, Chen et
    al., ICML 2018).

    The paper takes a gradient step on the weights in every step; here they are solved for at each
    measurement, and averaged. With G the norm of a task's unweighed gradient, L its loss and r = (L /
    L_first) over its mean, the weights are proportional to weight * r^alpha / G, and their sum stays. A task
    that learns slower (r above 1) gets a higher weight. momentum: that of the average.
    """

    first: Tensor
    weights: Tensor

    def __init__(self, weights: Mapping[str, float], *, alpha: float = 0.5, momentum: float = 0.9):
        super().__init__(weights)
        if not (alpha >= 0 and 0 <= momentum < 1):
            raise ConfigError(
                f"gradient_norm: alpha {alpha} must be 0 or more, and momentum {momentum} in [0, 1)"
            )
        self.alpha, self.momentum = alpha, momentum
        self.register_buffer("weights", torch.tensor(tuple(weights.values())))
        self.register_buffer("first", torch.zeros(len(weights)))

    def forward(self, task: str, loss: Tensor) -> tuple[Tensor, Tensor]:
        # a copy, as autograd keeps it and the weights change in place
        weight = self.weights[self.names.index(task)].clone()
        return loss * weight, weight

    @torch.no_grad()
    def follow(self, norms: Tensor, losses: Tensor) -> None:
        losses = losses.float()
        # a measurement that is not finite is of a skipped step
        finite = norms.isfinite().all() & losses.isfinite().all()
        # 0: not measured yet, or not to be divided by
        self.first.copy_(torch.where((self.first != 0) | ~finite, self.first, losses))
        rate = losses / self.first
        start = self.weights.new_tensor(tuple(self._start.values()))
        wanted = start * (rate / rate.mean()) ** self.alpha * self.weights / norms.float()
        wanted = wanted * start.sum() / wanted.sum()
        new = self.momentum * self.weights + (1 - self.momentum) * wanted
        self.weights.copy_(torch.where(finite & new.isfinite().all(), new, self.weights))


def build_balancing(config: BalancingConfig, weights: Mapping[str, float]) -> Balancing:
    """The balancing of a configuration. weights: maps each trained task to its weight. Raises ConfigError for
    an unknown type or option."""
    return BALANCING.build(config.type, weights, **config.options)
