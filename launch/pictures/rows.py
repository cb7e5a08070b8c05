"""The page of `dtem visualise`: a row for each of the first images of a split, with the results of each
task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from tqdm import tqdm

from launch.measure.compute import first_grid
from launch.pictures.captions import write_captions
from launch.pictures.classes import write_classes
from launch.pictures.masks import class_colours, draw_segmentation
from launch.pictures.merged_groups import default_blocks, draw_groups, picture_of
from launch.pictures.page import Page, Panel, Section
from launch.saved.run import checked_reduction
from pipeline.config.schema import DataConfig
from pipeline.data.shards.held_out import setting_of
from pipeline.data.stream import EvalLoader, build_eval_loader
from pipeline.data.targets import CaptionTargets, ClassificationTargets, MaskTargets
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch
from pipeline.merging.schedule import ReductionSpec
from pipeline.model import MultiTaskModel

ALL_TASKS = "groups, alike for all tasks"


def make_page(
    model: MultiTaskModel,
    datas: Mapping[str, DataConfig],
    title: str,
    *,
    num: int,
    reductions: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    split: str = "val",
    classes: Mapping[str, Sequence[str]] | None = None,
) -> Page:
    """A page with image, reference, predictions, and the groups after each block at each reduction, for each
    task of `datas`.

    Tasks with the same images share their rows. reductions None: each task's own. split, classes (by task):
    see build_eval_loader. Raises ConfigError for unknown blocks, and for reductions that need more tokens
    than the first image has.
    """
    if num < 1:
        raise ConfigError(f"--num {num}: give 1 image or more")
    blocks = blocks or default_blocks(model.backbone.depth)
    if max(blocks) >= model.backbone.depth:
        raise ConfigError(
            f"--blocks {max(blocks)}: the backbone's blocks are 0 to {model.backbone.depth - 1}"
        )
    one, names = dict(eval_batch_size=1, workers=0), classes or {}
    loaders = {
        task: build_eval_loader(
            task, replace(data, **one), rank=0, world_size=1, split=split, classes=names.get(task, ())
        )
        for task, data in datas.items()
    }
    model.check_data(loaders)
    painter = _Painter(model, loaders, list(reductions or [None]), blocks)
    shared = _of_one_source(datas, split)
    headings = [", ".join(tasks) if len(shared) > 1 else "" for tasks in shared]
    return Page(title, [painter.section(*part, num) for part in zip(shared, headings, strict=True)])


def _of_one_source(datas: Mapping[str, DataConfig], split: str) -> list[list[str]]:
    """Groups of tasks that have the same images."""
    sources: dict[str, list[str]] = {}
    for task, data in datas.items():
        sources.setdefault(repr((setting_of(data, split)[1], data.img_size)), []).append(task)
    return list(sources.values())


@dataclass(frozen=True)
class _Row:
    """The panels of one image."""

    image: Panel
    answers: dict[str, list[Panel]] = field(default_factory=dict)
    """Maps a task to the reference and the predictions."""
    groups: dict[str, list[Panel]] = field(default_factory=dict)
    """Maps a task to the merged groups."""


@dataclass
class _Painter:
    model: MultiTaskModel
    loaders: Mapping[str, EvalLoader]
    reductions: Sequence[ReductionSpec | None]
    blocks: Sequence[int]
    present: dict[str, set[int]] = field(default_factory=dict)
    """Maps a task to the classes in its masks."""

    def section(self, tasks: Sequence[str], heading: str, num: int) -> Section:
        rows: list[_Row] = []
        most = min(num, *(len(self.loaders[task]) for task in tasks))
        with tqdm(total=most, desc=heading or "images", disable=None, leave=False) as bar:
            for found in zip(*(self.loaders[task].in_place() for task in tasks), strict=False):
                if len(rows) == num:
                    break
                batches = [batch for batch in found if batch is not None]
                # a sample that all tasks can read
                if len(batches) == len(tasks) and len({batch.keys for batch in batches}) == 1:
                    rows.append(self._row(batches, first=not rows))
                    bar.update()
        return Section(_arranged(rows, tasks), self._legend(tasks), heading)

    def _row(self, batches: Sequence[Batch], *, first: bool) -> _Row:
        pictures = {batch.task: picture_of(batch.images[0]) for batch in batches}
        row, device = _Row(Panel(pictures[batches[0].task], "image")), next(self.model.parameters()).device
        for batch in (batch.to(device) for batch in batches):
            for reduction in self.reductions if first else ():
                if reduction is not None:
                    checked_reduction(self.model, first_grid(self.model, batch), reduction)
            row.answers[batch.task] = self._answers(batch, pictures[batch.task])
            row.groups[batch.task] = draw_groups(
                self.model, batch.task, batch.images[0], pictures[batch.task], self.reductions, self.blocks
            )
        return row

    def _answers(self, batch: Batch, picture: np.ndarray) -> list[Panel]:
        if isinstance(batch.targets, MaskTargets):
            panels, found = draw_segmentation(self.model, batch, picture, self.reductions)
            self.present.setdefault(batch.task, set()).update(found)
            return panels
        if isinstance(batch.targets, CaptionTargets):
            return write_captions(self.model, batch, self.reductions)
        if isinstance(batch.targets, ClassificationTargets):
            return [write_classes(self.model, batch, self.reductions, self.loaders[batch.task].classes)]
        return []

    def _legend(self, tasks: Sequence[str]) -> dict[str, np.ndarray]:
        """The colours of the classes in the masks; with the names of tasks if several have masks."""
        legend: dict[str, np.ndarray] = {}
        several = len([task for task in tasks if task in self.present]) > 1
        for task in tasks:
            classes, found = self.loaders[task].classes, sorted(self.present.get(task, ()))
            colours = class_colours(max(found, default=0) + 1)
            legend |= {
                f"{task}: {classes[i]}" if several else classes[i]: colours[i]
                for i in found
                if i < len(classes)
            }
        return legend


def _arranged(rows: Sequence[_Row], tasks: Sequence[str]) -> list[list[Panel]]:
    """The panels of each row in their order. Groups that are equal for all tasks in all rows are shown
    once."""
    if len(tasks) == 1:
        return [[row.image, *row.answers[tasks[0]], *row.groups[tasks[0]]] for row in rows]
    alike = all(_equal(row.groups[tasks[0]], row.groups[task]) for row in rows for task in tasks)
    owners = {tasks[0]: ALL_TASKS} if alike else {task: f"groups of {task}" for task in tasks}
    arranged = []
    for row in rows:
        answers = [
            replace(panel, owner=task) for task in tasks for panel in _texts_together(row.answers[task])
        ]
        arranged.append(
            [
                row.image,
                *answers,
                *(
                    replace(panel, owner=owner)
                    for task, owner in owners.items()
                    for panel in row.groups[task]
                ),
            ]
        )
    return arranged


def _equal(panels: Sequence[Panel], others: Sequence[Panel]) -> bool:
    pairs = list(zip(panels, others, strict=True))
    return all(
        one.caption == other.caption and np.array_equal(one.content, other.content) for one, other in pairs
    )


def _texts_together(panels: Sequence[Panel]) -> list[Panel]:
    """The panels; several texts of a task become one panel, with each text under its caption."""
    if len(panels) < 2 or any(isinstance(panel.content, np.ndarray) for panel in panels):
        return list(panels)
    lines = [
        line for panel in panels for line in (f"{panel.caption}:", *(f"  {text}" for text in panel.content))
    ]
    return [Panel(lines, "")]
