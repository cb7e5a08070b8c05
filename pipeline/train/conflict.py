"""Gradients of each task on the parameters that tasks share: their norms, and whether they point in one
direction. D shared parameters.

Hooks on the parameters measure them in one step out of `balancing.every`. In other steps there are no hooks,
and no memory is held. A measurement holds a vector [D] in float32 for each task, sums each over ranks in
place, and makes no copy of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.schema import RunConfig
from pipeline.interfaces import Sums, TaskOutput
from pipeline.parts import BALANCE
from pipeline.ranks import Ranks


@dataclass(frozen=True)
class Conflict:
    """A measurement of T tasks over all ranks. Its tensors are on the device."""

    tasks: tuple[str, ...]
    norms: Tensor
    """[T]: norms of the gradients, as they were weighed."""
    cosines: Tensor
    """[T, T]: cosines between the gradients."""
    losses: Tensor
    """[T]: losses of the same batches, not weighed."""

    def logs(self) -> Sums:
        """`grad_norm/TASK` and, of each pair, `grad_cosine/TASK/TASK`."""
        logs: Sums = {
            f"grad_norm/{task}": (norm, 1) for task, norm in zip(self.tasks, self.norms, strict=True)
        }
        for i, first in enumerate(self.tasks):
            logs |= {
                f"grad_cosine/{first}/{self.tasks[j]}": (self.cosines[i, j], 1)
                for j in range(i + 1, len(self.tasks))
            }
        return logs


class GradientProbe:
    """Measures the tasks' gradients. In a step that is `due`, call `watch` before each backward pass and
    `read` after the step. A measurement ends once each task was seen in such a step."""

    def __init__(
        self,
        tasks: Sequence[str],
        shared: Sequence[nn.Parameter],
        every: int,
        measurable: Callable[[int], bool],
    ):
        """shared: parameters that are still whole; ZeRO 3 divides them later. measurable: whether a step
        trains them."""
        self._tasks, self._shared = tuple(tasks), list(shared)
        self._every, self._measurable = every, measurable
        self._sizes = [parameter.numel() for parameter in shared]
        self._begun = False
        self._vectors: dict[str, Tensor] = {}
        self._losses: dict[str, Tensor] = {}
        self._seen: set[str] = set()
        self._hooks: list[Any] = []

    def due(self, step: int) -> bool:
        """Whether the step belongs to a measurement. The step that begins one depends on its number alone, as
        this process may have been resumed."""
        self._begun = self._begun or not any(map(self._measurable, range(step - step % self._every, step)))
        return self._begun and self._measurable(step)

    def watch(self, task: str, output: TaskOutput, share: float) -> None:
        """Adds the gradients of the next backward pass to the task's. share: the factor of this loss in the
        task's loss of the step."""
        self._unhook()
        if task in self._seen or output.unweighed is None:
            return
        zero = torch.zeros((), device=output.loss.device)
        vector = self._vectors.setdefault(task, zero.new_zeros(sum(self._sizes)))
        self._losses[task] = self._losses.get(task, zero) + output.unweighed.float() * share
        for parameter, part in zip(self._shared, vector.split(self._sizes), strict=True):
            self._hooks.append(parameter.register_hook(adder(part)))

    def read(self, ranks: Ranks) -> Conflict | None:
        """The measurement, or None while a task is missing. A collective."""
        self._unhook()
        self._seen = set(self._vectors)
        if len(self._seen) < len(self._tasks):
            return None
        vectors = [ranks.all_reduce(self._vectors[task]) for task in self._tasks]
        losses = ranks.all_reduce(torch.stack([self._losses[task] for task in self._tasks]))
        self._begun, self._vectors, self._losses, self._seen = False, {}, {}, set()
        losses = losses / ranks.world_size
        products = _products(vectors, self._sizes) / ranks.world_size**2
        norms = products.diagonal().clamp(min=0).sqrt()
        cosines = products / (norms[:, None] * norms).clamp(min=torch.finfo(torch.float32).tiny)
        return Conflict(self._tasks, norms, cosines, losses)

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def _products(vectors: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """[T, T]: products of T vectors [D], summed parameter by parameter, so that no more than one parameter is
    copied. sizes: those of the parameters; their sum is D."""
    total = vectors[0].new_zeros(len(vectors), len(vectors), dtype=torch.float64)
    for parts in zip(*(vector.split(list(sizes)) for vector in vectors), strict=True):
        gradients = torch.stack(parts)
        total += gradients @ gradients.T
    return total.float()


def adder(part: Tensor) -> Any:
    """A hook that adds a gradient to `part`, and leaves the gradient as it is."""

    def add(gradient: Tensor) -> None:
        part.add_(gradient.detach().reshape(-1))

    return add


def build_probe(
    config: RunConfig,
    groups: Sequence[Mapping[str, Any]],
    tasks: Sequence[str],
    trains: Callable[[int], frozenset[str]],
) -> GradientProbe | None:
    """The probe of the parameters that the first step trains and no task owns. None where there is nothing to
    compare, or balancing.every is 0. trains: maps a step to the kinds that learn in it."""
    trained = trains(0)
    shared = [
        p
        for group in groups
        if group["owner"] is None and group["kind"] in trained - {BALANCE}
        for p in group["params"]
    ]
    if len(tasks) < 2 or not shared or config.balancing.every == 0:
        return None
    return GradientProbe(tasks, shared, config.balancing.every, lambda step: trains(step) == trained)
