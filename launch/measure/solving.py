"""Solved schedules of a run: the images to solve on, what is measured on them, and a schedule for any
grid. What is learned is so on the same images."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F
from tqdm import tqdm

from launch.measure.divergence import distributions, gap, mean_gap
from launch.measure.points import DIVERGENCE
from pipeline.backbone.backbone import Backbone
from pipeline.backbone.macs import counted_vit
from pipeline.backbone.macs_goal import MacsGoal
from pipeline.backbone.solved_schedule import Measure, ScheduleSolver, Solved
from pipeline.config.schema import DataConfig
from pipeline.data.stream import build_eval_loader
from pipeline.engine import launched
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, LogProbs, Tallies
from pipeline.merging.schedule import merged_shares
from pipeline.model import MultiTaskModel
from pipeline.token_state import Grid

IMAGES = 64
AT_ONCE = 8
"""Images of a batch that is drawn: neighbours in their shard."""


@dataclass(frozen=True)
class Solving:
    """The images on which schedules are solved. source: shards in place of a task's `data.train`. images:
    about how many. seed: of their draw. Raises ConfigError."""

    source: str | None = None
    images: int = IMAGES
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ConfigError(f"--solve-images is {self.images}; give 1 or more")

    def check(self, split: str | None = None) -> None:
        """Raises ConfigError where there are several processes, or a run's scores would be of the images that
        it trains on. split: that is reported."""
        if (processes := launched.world_size()) > 1:
            raise ConfigError(
                f"a schedule is solved in one process, and a launcher started {processes}: solve it "
                "with one, and give what it prints as --reduction to the others"
            )
        if split == "train":
            raise ConfigError(
                "schedules are solved on images that are trained on, so the scores have to be of another "
                "split than train: leave --split out, or give val, test or another one"
            )

    def data_of(self, task: str, data: DataConfig) -> DataConfig:
        """The task's data, whose `train` are the shards to solve on. Raises ConfigError where there are
        none."""
        if self.source is not None:
            return replace(data, train=self.source, train_weights=None, allow_overlap=False)
        if data.train is None:
            raise ConfigError(
                f"task '{task}' has no data.train, on whose images schedules would be solved; give "
                "--solve-on SHARDS, other ones than those that are reported on"
            )
        return data


def solving_batches(
    task: str, data: DataConfig, classes: Sequence[str], model: MultiTaskModel, solving: Solving
) -> list[Batch]:
    """Images drawn from `data.train`, preprocessed as for evaluation, and cut or padded to the size that
    inference encodes first. Of a video one clip. All have the grid that most of them have. On the CPU,
    normalised. classes: of the head. Raises ConfigError and SampleError."""
    one = dict(eval_clips=1, eval_crops=1)
    data = replace(data, eval_batch_size=min(AT_ONCE, solving.images), limit_val=None, **one)
    loader = build_eval_loader(task, data, rank=0, world_size=1, split="train", classes=classes)
    model.check_data({task: loader})
    loader.draw(-(-solving.images // AT_ONCE), solving.seed)
    batches = [_as_encoded(batch.to("cpu"), model) for batch in loader]
    if not batches:
        raise ConfigError(f"task '{task}': none of the images to solve a schedule on can be read")
    counts: Counter[Grid] = Counter()
    for batch in batches:
        counts[model.backbone.grid_of(batch.images)] += len(batch.images)
    grid = counts.most_common(1)[0][0]
    return [batch for batch in batches if model.backbone.grid_of(batch.images) == grid]


def _as_encoded(batch: Batch, model: MultiTaskModel) -> Batch:
    """Padded with zeros at the right and below, as inference pads."""
    height, width = model.tasks[batch.task].input_size(batch)
    images = batch.images[..., :height, :width]
    padding = (0, width - images.shape[-1], 0, height - images.shape[-2])
    return replace(batch, images=F.pad(images, padding) if any(padding) else images)


def predicted(model: MultiTaskModel, batch: Batch, schedule: list[int] | int, *, relaxed: bool) -> LogProbs:
    """What the model predicts of a batch with r of each block; no label is read. Raises ConfigError where the
    task predicts no distributions."""
    task = model.tasks[batch.task]
    output = model.encode(
        batch.task, batch.images, reduction=schedule, relaxed=relaxed, prefix_alone=task.reads_prefix_alone
    )
    if (found := distributions(task, output, batch)) is None:
        raise ConfigError(
            f"task '{batch.task}' has no log_probs, from which a divergence could be measured; give "
            "--schedule even or early"
        )
    return found


def unmerged_predictions(
    model: MultiTaskModel, batches: Sequence[Batch], device: torch.device
) -> list[tuple[Batch, LogProbs]]:
    """The batches on the device, each with the predictions of the model's unmerged pass; nothing is compiled.
    Raises as `predicted`."""
    with torch.compiler.set_stance("force_eager"):
        moved = [batch.to(device) for batch in batches]
        return [(batch, predicted(model, batch, 0, relaxed=False)) for batch in moved]


def divergence_of(model: MultiTaskModel, batches: Sequence[Batch], device: torch.device) -> Measure:
    """Maps r of each block to the mean divergence (nats) of the model's predictions from those of its
    unmerged pass, over the distributions that count, in float32. The model is on the device, in evaluation
    mode; nothing is compiled. Raises ConfigError where the task predicts no distributions."""
    with torch.inference_mode():
        known = unmerged_predictions(model, batches, device)

    def measure(schedule: Sequence[int]) -> float:
        total: Tallies = {}
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            for batch, teacher in known:
                found = gap(predicted(model, batch, list(schedule), relaxed=False), teacher)
                total = {name: value + total.get(name, 0) for name, value in found.items()}
        return mean_gap(total).get(DIVERGENCE, 0.0)

    return measure


def solved_with_bar(solver: ScheduleSolver, share: float, label: str) -> Solved:
    """What the solver finds, with a progress bar of what is measured where there is a terminal."""
    with tqdm(total=solver.most_measured(1), desc=f"solve {label}", leave=False, disable=None) as bar:
        return solver.solve(share, told=bar.update)


class FoundSchedules:
    """Maps (backbone, share of the MACs, grid) to a schedule: found on the grid of some batches, and with the
    same shares of the patches, times a factor, for others. Raises ConfigError for a share that cannot be
    reached. A subclass says how it is found."""

    def __init__(self, model: MultiTaskModel, batches: Sequence[Batch]):
        """model: of the policy, on the device."""
        self._grid = model.backbone.grid_of(batches[0].images)

    def __call__(self, backbone: Backbone, share: float, grid: Grid) -> list[int]:
        schedule = self.found(share)
        if grid == self._grid:
            return schedule
        shares = merged_shares(schedule, math.prod(self._grid))
        return MacsGoal(counted_vit(backbone, grid), share).fitted(shares)

    def found(self, share: float) -> list[int]:
        """The schedule on the grid of the batches; it is found once."""
        raise NotImplementedError

    def options(self, share: float) -> Mapping[str, Any]:
        """The options of the policy that were found with the schedule."""
        return {}


class SolvedSchedules(FoundSchedules):
    """Schedules that are solved."""

    def __init__(self, model: MultiTaskModel, batches: Sequence[Batch], label: str, device: torch.device):
        """model: of the policy, on the device. label: on the progress bar."""
        super().__init__(model, batches)
        self._label = label
        self._solver = cache(
            lambda: ScheduleSolver(
                counted_vit(model.backbone, self._grid), divergence_of(model, batches, device)
            )
        )
        self._solved = cache(self._solve)

    def found(self, share: float) -> list[int]:
        return self._solved(share)

    def _solve(self, share: float) -> list[int]:
        return solved_with_bar(self._solver(), share, f"{self._label} at {share:g}").schedule
