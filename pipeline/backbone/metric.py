"""The metric embedding of a block: shared by all tasks, one per task, or shared with an adapter per task.
C channels of the backbone, F of the embedding, R rank of an adapter.

For one task each form is one linear layer (see `fold`): all cost the same at inference, and are exported as
one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbone.packed_linear import Beside, bare
from pipeline.errors import ConfigError
from pipeline.parts import METRIC, M, ModulesOfTasks

EMBEDDINGS = ("shared", "per_task", "adapter")
LEARNED = ("metric", "reducer", "recovery")
"""Names of the parts of a block that belong to its policy."""


class MetricEmbedding(nn.Linear):
    """One layer for all tasks, [B, M, C] -> [B, M, F]. Keys, as in the authors' release:
    `blocks.N.metric.{weight,bias}`."""

    part_kind = METRIC

    def forward(self, input: Tensor, task: str | None = None) -> Tensor:
        return super().forward(input)

    def fold(self, task: str | None) -> dict[str, Tensor]:
        """weight [F, C] and bias [F] of the one linear layer of a task."""
        return {"weight": self.weight, "bias": self.bias}

    def sources(self, task: str | None) -> tuple[Tensor, ...]:
        """What the layer of a task is made of."""
        return self.weight, self.bias


class AdaptedEmbedding(MetricEmbedding):
    """A shared layer to whose weight each task adds a product of rank R, 0 at first. Keys:
    `metric.adapters.TASK.{down,up}`."""

    def __init__(self, channels: int, width: int, tasks: Sequence[str], rank: int):
        super().__init__(channels, width)
        self.adapters: ModulesOfTasks[_Change] = ModulesOfTasks(
            {task: _Change(channels, width, rank) for task in tasks}
        )

    def forward(self, input: Tensor, task: str | None = None) -> Tensor:
        return F.linear(input, self.weight + _of(self.adapters, task)(), self.bias)

    def fold(self, task: str | None) -> dict[str, Tensor]:
        return {"weight": self.weight + _of(self.adapters, task)(), "bias": self.bias}

    def sources(self, task: str | None) -> tuple[Tensor, ...]:
        change = _of(self.adapters, task)
        return self.weight, self.bias, change.down, change.up


class _Change(nn.Module):
    """A task's change of the weight: [F, C] of rank R."""

    def __init__(self, channels: int, width: int, rank: int):
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, channels) * channels**-0.5)
        self.up = nn.Parameter(torch.zeros(width, rank))

    def forward(self) -> Tensor:
        return self.up @ self.down


class EmbeddingPerTask(nn.Module):
    """One layer per task. Keys: `metric.tasks.TASK.{weight,bias}`."""

    part_kind = METRIC

    def __init__(self, channels: int, width: int, tasks: Sequence[str]):
        super().__init__()
        self.tasks: ModulesOfTasks[MetricEmbedding] = ModulesOfTasks(
            {task: MetricEmbedding(channels, width) for task in tasks}
        )

    @property
    def weight(self) -> Tensor:
        """Weight [F, C] of the first task; all have the same shape."""
        return next(self.parameters())

    @property
    def out_features(self) -> int:
        return len(self.weight)

    def forward(self, x: Tensor, task: str | None = None) -> Tensor:
        return _of(self.tasks, task)(x)

    def fold(self, task: str | None) -> dict[str, Tensor]:
        return _of(self.tasks, task).fold(task)

    def shared_keys(self) -> dict[str, str]:
        """Key of this state -> key of a shared embedding's state, from which the task's layer can start."""
        return {
            f"tasks.{task}.{key}": key for task, layer in self.tasks.items() for key in layer.state_dict()
        }


@dataclass(frozen=True)
class EmbeddingSpec:
    """Form of the metric embeddings. kind: one of EMBEDDINGS. tasks: those with parts of their own. rank: of
    an adapter. Raises ConfigError."""

    kind: str = "shared"
    tasks: tuple[str, ...] = ()
    rank: int = 4

    def __post_init__(self) -> None:
        if self.kind not in EMBEDDINGS:
            raise ConfigError(f"metric embedding is '{self.kind}'; give one of {', '.join(EMBEDDINGS)}")
        if self.kind != "shared" and not self.tasks:
            raise ConfigError(f"metric embedding '{self.kind}' has a part for each task; name the tasks")

    def build(self, channels: int, width: int) -> MetricEmbedding | EmbeddingPerTask:
        if self.kind == "per_task":
            return EmbeddingPerTask(channels, width, self.tasks)
        if self.kind == "adapter":
            return AdaptedEmbedding(channels, width, self.tasks, self.rank)
        return MetricEmbedding(channels, width)


def beside_of(metric: nn.Module, task: str | None) -> Beside | None:
    """The embedding of a task, to be computed with another layer of the same input. None where it has to be
    called: something hooked, wrapped, sharded or quantised it, or it was made under inference mode."""
    if not _is_ours(metric):
        return None
    layer = _of(metric.tasks, task) if isinstance(metric, EmbeddingPerTask) else metric
    if not isinstance(layer, MetricEmbedding) or not _is_ours(layer):
        return None
    sources = layer.sources(task)
    if any(type(source) is not nn.Parameter or source.is_inference() for source in sources):
        return None
    shared = type(metric) is MetricEmbedding
    return Beside("metric" if shared else f"metric of {task}", sources, lambda: layer.fold(task))


def _is_ours(metric: nn.Module) -> bool:
    return type(metric) in (MetricEmbedding, AdaptedEmbedding, EmbeddingPerTask) and bare(metric)


def _of(parts: ModulesOfTasks[M], task: str | None) -> M:
    if task is None or task not in parts:
        raise ConfigError(
            f"the metric embedding has a part for each of {', '.join(parts)}, not for {task!r}; name "
            "one of these tasks"
        )
    return parts[task]


def is_embedding(key: str) -> bool:
    """Whether a key of a saved state belongs to what a policy learns: a metric embedding, a reducer or its
    recovery. For a model, read `roles_of` instead."""
    return any(f".{part}." in key for part in LEARNED)
