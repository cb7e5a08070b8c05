"""The section `log` of a run's config. Standard library only."""

from dataclasses import dataclass, field
from typing import Any

from pipeline.config.reduction_schema import require

MOST_PICTURES = 64


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What a run is called, and who is told of it beside metrics.jsonl."""

    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """`tensorboard`, `csv`, `wandb`, `mlflow`, `trackio`. One that fails is told no more; the run goes on."""
    project: str = "dtem"
    """Project of wandb and trackio, experiment of MLflow."""
    name: str | None = None
    """Name of the run; None: that of its folder."""
    tags: list[str] = field(default_factory=list)
    notes: str = ""
    pictures: int = 0
    """Samples of each task that are drawn at each evaluation: predictions and merged groups."""
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Tracker -> its own options."""

    def __post_init__(self) -> None:
        require(bool(self.project), "log.project is empty; give a name")
        fits = 0 <= self.pictures <= MOST_PICTURES
        require(fits, f"log.pictures is {self.pictures}; give 0 to {MOST_PICTURES}")
        twice = len(set(self.trackers)) < len(self.trackers)
        require(not twice, f"log.trackers {self.trackers} names one twice")
        spare = sorted(self.options.keys() - set(self.trackers))
        require(not spare, f"log.options has {spare}, and log.trackers is {self.trackers}")
