"""What the plan of a run asks of its config and of its backbone."""

from dataclasses import dataclass

from pipeline.config.schema import ReductionConfig, RunConfig, TaskConfig


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the checks need to know of the backbone, without building it at full size."""

    patch: tuple[int, int]
    """Height and width of a patch in pixels."""
    depth: int
    num_prefix: int
    grid: tuple[int, int]
    """Patches (rows, columns) that the position embedding is made for."""


def fed_tasks(config: RunConfig) -> dict[str, TaskConfig]:
    """Those that training feeds: all that are not frozen."""
    return {name: task for name, task in config.tasks.items() if not task.frozen}


def reduction_of(config: RunConfig, task: str) -> ReductionConfig:
    """The task's own, or the run's."""
    return config.tasks[task].merging or config.merging


def range_of(config: RunConfig, task: str) -> tuple[str, tuple[int, int] | None]:
    """The range that a step's reduction for the task is drawn from, and where it is given."""
    own = config.tasks[task].merging
    if own is not None:
        return f"tasks.{task}.merging.reduction_range", own.reduction_range
    return "train.reduction_range", config.train.reduction_range


def near_multiples(pixels: int, patch: int) -> list[int]:
    """The multiples of `patch` next to `pixels`, the nearer one first."""
    low = pixels // patch * patch
    return sorted((size for size in (low, low + patch) if size > 0), key=lambda size: abs(size - pixels))
