"""An exponential moving average of the trained weights, for evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pipeline.config.schema import RunConfig
from pipeline.engine import divides_weights
from pipeline.errors import ConfigError
from pipeline.parts import trained_parameters


class Ema:
    """The average of the trainable parameters of a module; frozen ones are their own average. warms_up: see
    `decay_at`."""

    def __init__(self, module: nn.Module, decay: float, *, warms_up: bool = False):
        self._decay, self._warms_up = decay, warms_up
        trained = trained_parameters(module)
        self._names, self._params = list(trained), list[Tensor](trained.values())
        self._average = [parameter.detach().clone() for parameter in self._params]

    def update(self, step: int) -> None:
        """Follows the weights behind step number `step` of the run."""
        decay = decay_at(step, self._decay) if self._warms_up else self._decay
        get_ema_multi_avg_fn(decay)(self._average, self._params, None)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While it is open, the parameters of the module are the averages."""
        weights = [parameter.detach().clone() for parameter in self._params]
        self._fill(self._average)
        try:
            yield
        finally:
            self._fill(weights)

    @torch.no_grad()
    def _fill(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self._params, values, strict=True):
            parameter.copy_(value)

    def averages(self) -> Iterator[tuple[str, Tensor]]:
        """Name and average of each parameter. Writing to it sets the average."""
        return zip(self._names, self._average, strict=True)


def decay_at(step: int, decay: float) -> float:
    """timm's warm-up of a decay: 1 - (step + 1)^(-2/3), at most `decay`. The first steps are forgotten."""
    return min(decay, 1 - (1 + step) ** (-2 / 3))


def check_ema(config: RunConfig) -> None:
    """Raises ConfigError where no rank holds a whole parameter to follow."""
    if config.optim.ema_decay and divides_weights(config):
        raise ConfigError(
            "optim.ema_decay needs whole parameters, which engine.zero_stage=3 and engine.type='fsdp' cut "
            "up; give engine.type='deepspeed' with zero_stage=2, or ema_decay=0"
        )
