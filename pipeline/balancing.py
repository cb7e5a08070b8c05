"""Balancing: the weights of the losses of several tasks. Each class is a part of the model, so that its state
is saved with it.

T tasks, in the order of the configuration.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pipeline.config.schema import BalancingConfig
from pipeline.errors import ConfigError
from pipeline.loss_transformer import LossTransformer, outer_loss
from pipeline.parts import BALANCE, ParametersOfTasks
from pipeline.registry import Registry

BALANCING: Registry["Balancing"] = Registry("balancing")


class Balancing(nn.Module):
    """Weighs the losses of tasks. weights: maps a task to its weight in the configuration."""

    part_kind = BALANCE
    combines = False
    """Whether it weighs each loss of a task by itself, and is built with their names (`MELTR`)."""

    def __init__(self, weights: Mapping[str, float]):
        super().__init__()
        self.names, self._start = tuple(weights), dict(weights)

    def weigh(self, task: str, loss: Tensor, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """As `forward`, of a task whose loss is the sum of `parts`: scalars by name, the main one first."""
        return self(task, loss)

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


@BALANCING.register("meltr")
class MELTR(Balancing):
    """Each loss weighed by the slope of a small transformer that combines all of them (MELTR, Ko et al., CVPR
    2023), which learns so that the model's steps lower the main losses on other samples.

    L = sum of w_i l_i + f(w_1 l_1, ..., w_T l_T). The transformer f starts at zero, so that weights start as
    in the configuration. A step of the model goes down dL/dl_i of each loss, at the losses of the last step
    of the transformer (`pipeline.train.bilevel`). No slope counts as less than `least` of what it was at the
    start, and the sum of the weights stays.

    losses: maps a task to the names of its losses, the main one first; None: one each. primary: the tasks
    whose main losses are to fall; None: all. period: steps of the model for one of the transformer. gamma: of
    |f|, which keeps L near the plain sum. clip: largest norm of the transformer's gradient, which counts in
    `optim.clip_grad` beside that of the model. width, heads: of the transformer. Raises ConfigError.
    """

    combines = True
    start: Tensor
    weights: Tensor
    losses: Tensor
    given: Tensor

    def __init__(
        self,
        weights: Mapping[str, float],
        losses: Mapping[str, Sequence[str]] | None = None,
        *,
        primary: Sequence[str] | None = None,
        period: int = 3,
        gamma: float = 0.1,
        clip: float = 0.1,
        least: float = 0.01,
        width: int = 256,
        heads: int = 8,
    ):
        super().__init__(weights)
        if period < 1 or gamma < 0 or clip <= 0 or not 0 < least < 1:
            raise ConfigError(
                f"meltr: period {period} must be 1 or more, gamma {gamma} 0 or more, clip {clip} above 0, "
                f"and least {least} in (0, 1)"
            )
        if heads < 1 or width < 2 or width % heads or width % 2:
            raise ConfigError(f"meltr: width {width} must be even, and divide by heads {heads}")
        if primary is not None and (not primary or set(primary) - set(weights)):
            raise ConfigError(
                f"meltr: primary is {list(primary)}; give one or more of the tasks that learn, "
                f"{', '.join(weights)}"
            )
        named = losses or {task: ("loss",) for task in weights}
        self.parts = tuple((task, part) for task in weights for part in named[task])
        self.primary = tuple(weights if primary is None else primary)
        self.period, self.gamma, self.clip, self.least = period, gamma, clip, least
        self.network = LossTransformer(len(self.parts), width=width, heads=heads)
        start = torch.tensor([weights[task] for task, _ in self.parts])
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("weights", start.clone())
        self.register_buffer("losses", torch.zeros(len(start)))
        self.register_buffer("given", torch.zeros(len(start)))

    def forward(self, task: str, loss: Tensor) -> tuple[Tensor, Tensor]:
        return self.weigh(task, loss, {next(part for named, part in self.parts if named == task): loss})

    def weigh(self, task: str, loss: Tensor, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The weight is that of the main loss."""
        (first, weight), *others = [(part, self.weight_of(task, name)) for name, part in parts.items()]
        total = first * weight
        for part, own in others:
            total = total + part * own
        return total, weight

    def place_of(self, task: str, part: str) -> int | None:
        """The place of a loss among all; None for one that was not named, whose weight stays."""
        return self.parts.index((task, part)) if (task, part) in self.parts else None

    def weight_of(self, task: str, part: str) -> Tensor:
        """A copy of the weight of a loss, as autograd keeps it and weights change in place."""
        place = self.place_of(task, part)
        return self.weights.new_full((), self._start[task]) if place is None else self.weights[place].clone()

    def first_weight(self, task: str) -> float:
        """That of the configuration."""
        return self._start[task]

    def auxiliary_weights(self) -> dict[str, Tensor]:
        """Maps TASK/weight/NAME to the weight of a loss that is not its task's main one, a copy."""
        return {
            f"{task}/weight/{part}": self.weight_of(task, part)
            for (task, part), (before, _) in zip(self.parts[1:], self.parts, strict=False)
            if task == before
        }

    def combined(self, losses: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """f, a scalar, and the weights [T] that its slopes give; both with gradients in the transformer.
        losses [T]: not weighed. given [T] bool: those that are there; the others keep their first weight."""
        with torch.enable_grad():
            weighed = (losses * self.start).detach().requires_grad_()
            added = self.network(weighed, given)
            (slopes,) = torch.autograd.grad(added, weighed, create_graph=True)
            factors = 1 + slopes
            # what is held at the bottom still has its gradient, and so can rise again
            factors = factors + (factors.clamp(min=self.least) - factors).detach()
            wanted = self.start * factors
            kept = (self.start * given).sum() / (wanted * given).sum()
        return added, torch.where(given, wanted * kept, self.start)

    def outer_loss(self, losses: Tensor, products: Tensor, given: Tensor) -> Tensor:
        """What the transformer minimises, a scalar. products [T]: see `outer_loss` of the network; 0 where a
        loss was not there."""
        losses, given = self._known(losses, given)
        added, weights = self.combined(losses, given)
        return outer_loss(weights, products) + self.gamma * added.abs()

    @torch.no_grad()
    def learned(self, losses: Tensor, given: Tensor) -> None:
        """Takes the weights of the transformer as it is now, at losses [T] of which `given` [T] bool are
        there; others stay as they were last. What is not finite changes nothing."""
        losses, known = self._known(losses, given)
        _, weights = self.combined(losses, known)
        finite = losses.isfinite().all() & weights.isfinite().all()
        for own, new in ((self.losses, losses), (self.given, known.float()), (self.weights, weights)):
            own.copy_(torch.where(finite, new, own))

    def _known(self, losses: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """The newest losses [T], and which were ever there."""
        return torch.where(given, losses, self.losses), given | (self.given > 0)


def build_balancing(
    config: BalancingConfig, weights: Mapping[str, float], losses: Mapping[str, Sequence[str]] | None = None
) -> Balancing:
    """The balancing of a configuration. weights: maps each trained task to its weight. losses: maps it to the
    names of its losses, the main one first; None: one each. Raises ConfigError for an unknown type or option,
    and where there is nothing to combine."""
    if not getattr(BALANCING.get(config.type), "combines", False):
        return BALANCING.build(config.type, weights, **config.options)
    losses = losses or {task: ("loss",) for task in weights}
    if sum(map(len, losses.values())) < 2:
        raise ConfigError(
            f"balancing.type is '{config.type}', which combines losses, and the run has one "
            f"({', '.join(losses)}); give balancing.type='fixed', a second task, or an auxiliary loss (a "
            "captioner's contrastive_weight, a segmenter's auxiliary_head, another objective)"
        )
    return BALANCING.build(config.type, weights, losses, **config.options)
