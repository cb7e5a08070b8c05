"""Sections of a run's config: what an optimizer step is, and what is trained for how long. Standard library
only. Import them from `schema.py`."""

from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.config.reduction_schema import require, require_range
from pipeline.config.task_schema import MAX_WORKERS


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """Procedure of an optimizer step."""

    type: str | None = None
    """`plain`: forward and backward over each micro-batch, then one step. `alternate`: the same, with
    backbone and embeddings in turn. `dividemix`: two networks learn from labels some of which are wrong.
    None: `alternate` for train.mode `end_to_end`, else `plain`."""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Parts that are trained, length of the run, and times of logs, evaluations and checkpoints."""

    mode: Literal["modular", "end_to_end", "joint", "backbone", "heads"] = "modular"
    """`modular`: only the metric embeddings. `end_to_end`: backbone under hard merging and embeddings under
    soft merging, in turn. `joint`: everything at once under soft merging. `backbone`: everything but the
    embeddings, under the inference-time merge. `heads`: the heads alone, under the inference-time merge."""
    epochs: float | None = None
    steps: int | None = None
    """Number of optimizer steps; give either epochs or steps."""
    max_steps: int | None = None
    """Most steps, for a trial: the learning rate falls to its end by then, and its warm-up stays as it is."""
    alternate_period: int = 10
    """end_to_end: period in steps; one step of each trains the embeddings, the others the backbone."""
    reduction_range: tuple[int, int] | None = None
    """Range, both ends included, from which each step's reduction is drawn by (seed, step)."""
    best: str | None = None
    """Task whose main metric ranks checkpoints; None: the geometric mean of all tasks' main metrics."""
    log_every: int = 50
    eval_every: int | None = None
    """Steps between evaluations; None: one evaluation at the end."""
    patience: int | None = None
    """Evaluations in a row that are no better than the best, after which the run ends; None: any number."""
    save_every: int | None = None
    """Steps between checkpoints; None: those of an epoch. The last step is always saved."""
    save_minutes: float | None = 15.0
    """Longest time between checkpoints, beside `save_every`; None: any."""
    save_optimizer_at_end: bool = True
    """Whether the checkpoint of the last step has the moments, with which the run can be prolonged."""
    keep_checkpoints: int = 2
    mirror: str | None = None
    """Path or URL (s3, gs) to which each checkpoint is copied while training goes on. `--resume auto` fetches
    the newest one from there where the output has none."""
    workers: int | None = None
    """Decoding processes of a rank that work for all tasks, in place of each task's `data.workers`; None:
    each task has its own."""
    max_nonfinite: int = 5
    """Most steps in a row that are skipped for a loss that is not finite; one more stops the run."""

    def __post_init__(self) -> None:
        require(
            (self.epochs is None) != (self.steps is None), "give exactly one of train.epochs and train.steps"
        )
        for name in (
            "epochs",
            "steps",
            "max_steps",
            "log_every",
            "eval_every",
            "patience",
            "save_every",
            "save_minutes",
            "keep_checkpoints",
        ):
            value = getattr(self, name)
            require(value is None or value > 0, f"train.{name} is {value}; give a number above 0")
        require(
            self.workers is None or 0 <= self.workers <= MAX_WORKERS,
            f"train.workers is {self.workers}; give 0 to {MAX_WORKERS}, or None",
        )
        require(self.max_nonfinite >= 0, f"train.max_nonfinite is {self.max_nonfinite}; give 0 or more")
        require(
            self.alternate_period >= 2, f"train.alternate_period is {self.alternate_period}; give 2 or more"
        )
        require(
            self.patience is None or self.eval_every is not None,
            "train.patience counts evaluations; give train.eval_every too",
        )
        require_range("train.reduction_range", self.reduction_range)
