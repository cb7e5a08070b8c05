"""Facts that the plan of a run takes from its config and its backbone."""

from dataclasses import dataclass

from pipeline.config.schema import ReductionConfig, RunConfig, TaskConfig


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Facts of the backbone, which are known without building it at full size."""

    patch: tuple[int, int]
    """Height and width of a patch in pixels."""
    depth: int
    num_prefix: int
    grid: tuple[int, ...]
    """Patches (rows, columns) that the position embedding is made for; tubelets (times, rows, columns) of
    clips."""
    class_token: bool = True
    """Whether the first token is a class token."""
    rotary: bool = False
    """Whether positions are rotary."""
    never_merges: str = ""
    """Why no policy can merge the tokens; empty where some can."""
    resamples: bool = True
    """Whether there is a position embedding, which is resampled for another grid."""

    @property
    def times(self) -> int | None:
        """Tubelets of a clip in time; None of images."""
        return self.grid[0] if len(self.grid) == 3 else None


def fed_tasks(config: RunConfig) -> dict[str, TaskConfig]:
    """The tasks that training feeds: all that are not frozen."""
    return {name: task for name, task in config.tasks.items() if not task.frozen}


def merging_of(config: RunConfig, task: str) -> ReductionConfig:
    """The settings of a task's reduction: its own, or the run's."""
    return config.tasks[task].merging or config.merging


def range_of(config: RunConfig, task: str) -> tuple[str, tuple[int, int] | None]:
    """The setting that gives the range from which a step draws the task's reduction, and the range, or
    None."""
    own = config.tasks[task].merging
    if own is not None:
        return f"tasks.{task}.merging.reduction_range", own.reduction_range
    return "train.reduction_range", config.train.reduction_range


def near_multiples(pixels: int, patch: int) -> list[int]:
    """The multiples of `patch` next to `pixels`, the nearer one first."""
    low = pixels // patch * patch
    return sorted((size for size in (low, low + patch) if size > 0), key=lambda size: abs(size - pixels))
