"""Steps in which the balancing `meltr` learns, by bi-level optimisation: the model's step is the inner one,
and that of the loss transformer the outer one. T losses, D numbers that the model learns.

An outer step is a step of the model as any other. In the first half of each task's micro-batches hooks add up
the gradient [D] of the main losses: the validation loss. In the second half they take its product with the
gradient of each loss. The weighed gradient of the model is linear in the weights, so these T products say how
a step under other weights would have changed the validation loss, and no second derivative of the model is
needed: any attention kernel, recomputed blocks, and ZeRO 0 to 2 do. Other steps have no hooks.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.balancing import MELTR, Balancing
from pipeline.engine.protocol import Engine
from pipeline.interfaces import Sums, TaskOutput
from pipeline.parts import BALANCE


class Lesson:
    """What the backward passes of an outer step teach the balancing. All ranks call `backward` alike."""

    def __init__(
        self,
        balancing: MELTR,
        engine: Engine,
        parameters: Sequence[nn.Parameter],
        micro_batches: Mapping[str, int],
    ):
        self._balancing, self._engine = balancing, engine
        self._micro_batches, self._seen = micro_batches, Counter[str]()
        sizes = [parameter.numel() for parameter in parameters]
        self._ahead = torch.zeros(sum(sizes), device=engine.device)
        self._summed = False
        self._products, self._losses = torch.zeros(2, len(balancing.parts), device=engine.device)
        self._given: set[int] = set()
        self._factor: Tensor | None = None
        """That of a validation loss in what is added up, while it is."""
        self._product: Tensor | None = None
        """The product of one loss, while it is taken."""
        pairs = zip(parameters, self._ahead.split(sizes), strict=True)
        self._hooks: list[Any] = [parameter.register_hook(self._taker(part)) for parameter, part in pairs]

    def backward(self, task: str, output: TaskOutput, share: float, *, last: bool) -> None:
        """The backward pass of a micro-batch, loss by loss, and behind that of the step's last one that of
        the balancing's own loss. share: the factor of its loss in the task's loss of the step."""
        half, number = self._micro_batches[task] // 2, self._seen[task]
        self._seen[task] += 1
        parts, whole = list(output.parts.items()), self._seen.total() == sum(self._micro_batches.values())
        for i, (name, loss) in enumerate(parts):
            place, weight = self._balancing.place_of(task, name), self._balancing.weight_of(task, name)
            if place is not None:
                self._given.add(place)
                self._losses[place] += loss.detach() * share
            if number < half:
                self._validate(task, weight * share * half, main=i == 0)
            elif place is not None:
                self._compare(loss.new_zeros(()))
            ends = last and not whole and i + 1 == len(parts)
            self._engine.backward(loss * weight * share, last=ends, retain=i + 1 < len(parts))
            if self._product is not None and place is not None:
                self._products[place] += self._product / (weight * share * (self._micro_batches[task] - half))
            self._factor = self._product = None
        if last and whole:
            self.end()
            self._engine.backward(self._own_loss(), last=True)

    def measured(self) -> tuple[Tensor, Tensor]:
        """Losses [T] of the step over all ranks, and which of them were there, [T] bool."""
        return self._losses, self._mask()

    def end(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _taker(self, part: Tensor) -> Callable[[Tensor], None]:
        def take(gradient: Tensor) -> None:
            flat = gradient.detach().reshape(-1).float()
            if self._factor is not None:
                part.addcmul_(flat, self._factor)
            elif self._product is not None:
                self._product.add_(flat @ part)

        return take

    def _validate(self, task: str, applied: Tensor, *, main: bool) -> None:
        """applied: the factor with which the loss goes backwards, times the number of such micro-batches."""
        if main and task in self._balancing.primary:
            self._factor = self._balancing.first_weight(task) / applied

    def _compare(self, product: Tensor) -> None:
        if not self._summed:
            self._ahead.copy_(self._engine.all_reduce(self._ahead) / self._engine.world_size)
            self._summed = True
        self._product = product

    def _mask(self) -> Tensor:
        """bool [T] on the device, made without a copy to it."""
        given = torch.zeros_like(self._losses, dtype=torch.bool)
        for place in self._given:
            given[place] = True
        return given

    def _own_loss(self) -> Tensor:
        """A scalar whose gradient is the hypergradient, clipped. Products are of gradients in units of that
        of the validation loss, so that the scale of neither counts."""
        world = self._engine.world_size
        self._products, self._losses = (
            self._engine.all_reduce(torch.stack([self._products, self._losses])) / world
        )
        square = self._ahead @ self._ahead
        products = self._products / square.clamp(min=torch.finfo(square.dtype).tiny)
        own = list(self._balancing.network.parameters())
        gradients = torch.autograd.grad(self._balancing.outer_loss(self._losses, products, self._mask()), own)
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        factor = (self._balancing.clip / norm).clamp(max=1.0)
        return torch.stack([(p * (g * factor)).sum() for p, g in zip(own, gradients, strict=True)]).sum()


class Bilevel:
    """Says in which steps the balancing learns: the first of each `period` that trains what the first step of
    the run trains."""

    def __init__(
        self,
        balancing: MELTR,
        parameters: Sequence[nn.Parameter],
        micro_batches: Mapping[str, int],
        measurable: Callable[[int], bool],
    ):
        """parameters: what the model learns in such a step. micro_batches: of each task in a step, two or
        more. measurable: whether a step trains these parameters."""
        self._balancing, self._parameters = balancing, list(parameters)
        self._micro_batches, self._measurable = micro_batches, measurable

    def due(self, step: int) -> bool:
        """A pure function of the number, as this process may have been resumed."""
        start = step - step % self._balancing.period
        return self._measurable(step) and not any(map(self._measurable, range(start, step)))

    def trains(self, step: int, kinds: frozenset[str]) -> frozenset[str]:
        """The kinds that learn in a step whose procedure trains `kinds`."""
        return kinds if self.due(step) else kinds - {BALANCE}

    @contextmanager
    def teaching(self, engine: Engine, step: int) -> Iterator[Lesson | None]:
        """A context with the lesson of an outer step; None in any other step."""
        if not self.due(step):
            yield None
            return
        lesson = Lesson(self._balancing, engine, self._parameters, self._micro_batches)
        try:
            yield lesson
        finally:
            lesson.end()

    def follow(self, lesson: Lesson) -> Sums:
        """Takes the weights of the transformer after its step. Returns those of auxiliary losses, as
        `TASK/weight/NAME`; that of a main loss is in the logs of its task."""
        self._balancing.learned(*lesson.measured())
        return {name: (weight, 1) for name, weight in self._balancing.auxiliary_weights().items()}


def build_bilevel(
    balancing: Balancing,
    groups: Sequence[Mapping[str, Any]],
    micro_batches: Mapping[str, int],
    trains: Callable[[int], frozenset[str]],
) -> Bilevel | None:
    """None where the balancing does not learn so. trains: maps a step to the kinds that learn in it."""
    if not isinstance(balancing, MELTR):
        return None
    trained = trains(0)
    learned = [
        parameter for group in groups if group["kind"] in trained - {BALANCE} for parameter in group["params"]
    ]
    return Bilevel(balancing, learned, micro_batches, lambda step: trains(step) == trained)
