"""What the parts of the pipeline promise one another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.parts import BALANCE, BASE, HEAD, METRIC
from pipeline.pixels import Normalisation
from pipeline.token_state import BackboneOutput

Sums = dict[str, tuple[Tensor, Tensor | float]]
"""Name -> (sum, count), which add over steps and ranks; the value is sum / count. The sum is a detached
scalar on the device. So is a count that only the device knows; any other is a number, as a tensor made of it
would be a copy that the host waits for."""


@dataclass(frozen=True)
class Rows:
    """What an evaluation lists: a tensor [n, ...] on the device, or a tuple of n values that JSON can say."""

    values: Tensor | tuple[Any, ...]


Tallies = dict[str, Any]
"""What an evaluation counts and lists. A detached tensor of any shape on the device adds over batches and
ranks: whole numbers as int64 and so exactly, others as float64. `Rows` are joined, batch by batch and rank by
rank, so that rows of several names stay side by side."""

Scores = dict[str, float | None]
"""Metric -> value; None is n/a, for instance the IoU of a class that the samples do not have."""

Encode = Callable[[Tensor], BackboneOutput]
"""images [B, 3, H, W] -> the backbone's output under the merge of inference, with what the task reads (taps,
source maps)."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one task.

    images [B, 3, H, W]: uint8 as a stream gives them; behind `to` float32 and normalised, as models read
    them. targets: the task's own dataclass of tensors. keys: of each image, the name of its sample.
    normalisation: what `to` does to the images; None where it is done. views: how many images each sample
    has, side by side with a target each, so that `unflatten(0, (-1, views))` is [samples, views, ...].
    """

    task: str
    images: Tensor
    targets: Any
    keys: tuple[str, ...] = ()
    normalisation: Normalisation | None = None
    views: int = 1

    def to(self, device: torch.device | str) -> "Batch":
        """On the device, with normalised images."""
        moved: Batch = map_tensors(lambda tensor: tensor.to(device, non_blocking=True), self)
        if moved.normalisation is None:
            return moved
        return replace(moved, images=moved.normalisation(moved.images), normalisation=None)


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The value with the function's result in place of each tensor, also within dataclasses and tuples."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        return tuple(map_tensors(function, item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        own = {item.name: map_tensors(function, getattr(value, item.name)) for item in fields(value)}
        return replace(value, **own)
    return value


@dataclass(frozen=True)
class StepSpec:
    """What the loop intends with a micro-batch: what is to learn from it, and under which merge. The same on
    every rank."""

    trains: frozenset[str] = frozenset({METRIC, BASE, HEAD, BALANCE})
    """Kinds of parts (see `pipeline.parts`) that learn in this step; the others rest."""
    reduction: int | None = None
    """Tokens that each block merges; None: the task's own reduction."""
    relaxed: bool = True
    """Whether the merge is differentiable, where the policy has such a merge; if not, it is that of
    inference."""
    draw: float = 0.0
    """A number in [0, 1), for objectives that choose at random what they compute."""


JOINT_STEP = StepSpec()
"""Everything learns, under the relaxed merge."""


@dataclass(frozen=True)
class TaskOutput:
    """loss: scalar with gradient. logs: sums to report. predictions: the task's own form (for classification,
    logits [B, K]).

    unweighed: the loss before it was weighed against other tasks', detached; None where it was not.
    """

    loss: Tensor
    logs: Sums = field(default_factory=dict)
    predictions: Any = None
    unweighed: Tensor | None = None


@dataclass(frozen=True)
class LogProbs:
    """What a task predicts of a batch, as distributions over K outcomes: of each image a class, of each place
    a word.

    values [..., K] float32: log-probabilities, with gradient. counts [...] bool: which distributions count;
    None where all do, equally many on every rank.
    """

    values: Tensor
    counts: Tensor | None = None


class Task(nn.Module):
    """A head and its loss; what `forward` returns in `logs` is what is reported. A subclass says `reads`,
    `main_metric` and `metric_units`, and gives the methods that raise here; the rest has defaults."""

    reads: type
    """The dataclass of targets (see `pipeline.data.targets`) that its batches have."""
    taps: tuple[int, ...] = ()
    """Blocks whose states the head reads."""
    reads_final: bool = True
    """Whether it reads the final state as well; if not, what is behind the last tap changes nothing."""
    unmerge: str | None = None
    """How the head unmerges (one of `pipeline.merging.unmerge.UNMERGES`), or None where it does not."""
    num_classes: int = 0
    """How many classes the head tells apart; 0 where it tells none."""
    main_metric: str
    """Name of the metric that ranks checkpoints; larger is better."""
    metric_units: Mapping[str, str]
    """The metrics that tables and plots show, main_metric first, and their units: `%` for a share in [0, 1],
    else what stands behind the number as it is (may be nothing)."""

    def forward(self, output: BackboneOutput, batch: Batch) -> TaskOutput:
        raise NotImplementedError

    def check_classes(self, classes: Sequence[str]) -> None:
        """Raises ConfigError where shards with these classes have more than the head can tell."""
        needed = len(classes)
        if 0 < self.num_classes < needed:
            raise ConfigError(
                f"the shards have {needed} classes, the head has {self.num_classes}; give "
                f"head.num_classes={needed}"
            )

    def log_probs(self, output: TaskOutput, batch: Batch) -> LogProbs:
        """What the output of a batch predicts, for objectives that compare predictions or draw from them."""
        raise NotImplementedError

    def input_size(self, batch: Batch) -> tuple[int, int]:
        """(height, width) of the first images that `infer` gives to `encode`: the batch's, or a window's."""
        return batch.images.shape[-2], batch.images.shape[-1]

    def infer(self, encode: Encode, batch: Batch) -> Any:
        """What a user is given for the batch's images: classes, masks, captions. Calls `encode` as often as
        it likes: per window, per scale. Speed is measured on it."""
        raise NotImplementedError

    def infer_in_full(self, encode: Encode, batch: Batch) -> Any:
        """All the work that any prediction takes, on which compute is measured: `infer`, but where its work
        depends on what is predicted."""
        return self.infer(encode, batch)

    def evaluate(self, encode: Encode, batch: Batch) -> Tallies:
        """What the metrics are made of, over the batch's samples."""
        raise NotImplementedError

    def scores(self, tallies: Tallies, *, thorough: bool = False) -> Scores:
        """The metrics of tallies that were added up, tensors on the CPU, `samples` (how many) among them.
        Called on rank 0 alone.

        thorough: also those that take long, for which training does not wait.
        """
        raise NotImplementedError


class TaskData(Protocol):
    """A task's samples, as they are told to a model and to a user."""

    num_samples: int
    """Of one epoch, over all ranks."""
    classes: tuple[str, ...]
    """What labels stand for; empty where there are none."""
    gives: type
    """The dataclass of targets that its batches have."""


@dataclass
class Progress:
    """The loop's whole memory."""

    step: int = 0
    """Optimizer steps done."""
    samples: dict[str, int] = field(default_factory=dict)
    """Samples seen, per task, over all ranks."""
    nonfinite: int = 0
    """Steps in a row that were skipped because a loss was not finite."""
    best: float | None = None
    """Best value of the main metric so far."""
    evaluated: int = 0
    """The step of the last evaluation."""
