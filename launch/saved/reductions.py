"""Reductions as commands name them: texts, what pays on a device, and what thresholds keep."""

import math

from pipeline.backbone.auto_reduction import AUTO, Auto, paying_reduction, read_auto
from pipeline.backbone.threshold import KEPT, kept_reduction
from pipeline.config.overrides import parse_value
from pipeline.errors import ConfigError
from pipeline.merging.schedule import ReductionSpec, check_schedule
from pipeline.model import MultiTaskModel
from pipeline.token_state import Grid


def parse_reduction(text: str) -> ReductionSpec:
    """Reduction of a text: `8` (per block), `0.9` (keep rate), `(8,-1)` (with inflection) or `[8,8,4]` (by
    block). Raises ConfigError."""
    if text.startswith(AUTO):
        raise ConfigError(
            f"reduction '{text}' is measured on a device, which `dtem evaluate`, `predict`, `bench` and "
            "`export` do; `dtem doctor --speed MODEL` prints it as r per block, to be given here"
        )
    if text == KEPT:
        raise ConfigError(
            f"reduction '{text}' is what a run's thresholds keep, which `dtem evaluate`, `predict`, `bench` "
            "and `export` read; `dtem evaluate` prints it as r per block, to be given here"
        )
    for name in ("solved", "learned"):
        if text.startswith(name):
            raise ConfigError(
                f"reduction '{text}' is {name} on images, in minutes: `dtem sweep --schedule {name}` prints "
                "it as r per block, to be given here"
            )
    value = parse_value(text)
    if isinstance(value, bool) or not isinstance(value, int | float | tuple | list):
        raise ConfigError(
            f"reduction '{text}' is not an integer, a keep rate such as 0.9, '(8,-1)' or a list '[8,8,4]'"
        )
    return value


def asked_reduction(text: str) -> ReductionSpec | Auto:
    """As `parse_reduction`, and `auto`, `auto:R` or `auto:R@IMAGES`, and `kept`. Raises ConfigError."""
    if text == KEPT:
        return Auto(kept=True)
    return read_auto(text) if text.startswith(AUTO) else parse_reduction(text)


def measured_reduction(model: MultiTaskModel, task: str, size: tuple[int, int], asked: Auto) -> list[int]:
    """r of each block: of what is asked for, or else of the task's own reduction, those merges that pay on
    the model's device for images of (height, width) pixels; or what thresholds have learned. Raises
    ConfigError."""
    grid = model.backbone.grid_of_size(size)
    if asked.kept:
        return kept_reduction(list(model.backbone.blocks), math.prod(grid))
    wished = None if asked.reduction is None else checked_reduction(model, grid, asked.reduction)
    schedule = list(model.schedule(task, grid, wished))
    return paying_reduction(model.backbone, schedule, batch=asked.batch, size=size, task=task)


def checked_reduction(model: MultiTaskModel, grid: Grid, reduction: ReductionSpec) -> ReductionSpec:
    """The reduction. Raises ConfigError where images of this grid have too few tokens for it."""
    prefix = model.backbone.num_prefix
    check_schedule(reduction, model.backbone.depth, math.prod(grid) + prefix, prefix)
    return reduction
