"""The page of `dtem visualise`: a row for each of the first validation images, with what each task makes of
it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

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
    """Image, what is right and what is predicted, and the groups after each block at each reduction, for each
    task of `datas`.

    Tasks that are shown the same images share their rows. reductions None: each task's own. split, classes
    (by task): see build_eval_loader.

    Raises ConfigError for blocks that are not there, and reductions that the first image has too few tokens
    for.
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
    sections = [painter.section(tasks, num) for tasks in _of_one_source(datas, split)]
    if len(sections) > 1:
        headings = [", ".join(tasks) for tasks in _of_one_source(datas, split)]
        sections = [
            replace(section, heading=heading) for section, heading in zip(sections, headings, strict=True)
        ]
    return Page(title, sections)


def _of_one_source(datas: Mapping[str, DataConfig], split: str) -> list[list[str]]:
    """Tasks together whose images are the same: one list for each."""
    sources: dict[str, list[str]] = {}
    for task, data in datas.items():
        sources.setdefault(repr((setting_of(data, split)[1], data.img_size)), []).append(task)
    return list(sources.values())


@dataclass(frozen=True)
class _Row:
    """Of one image: by task what is right and predicted, and the groups."""

    image: Panel
    answers: dict[str, list[Panel]] = field(default_factory=dict)
    groups: dict[str, list[Panel]] = field(default_factory=dict)


@dataclass
class _Painter:
    model: MultiTaskModel
    loaders: Mapping[str, EvalLoader]
    reductions: Sequence[ReductionSpec | None]
    blocks: Sequence[int]
    present: dict[str, set[int]] = field(default_factory=dict)
    """By task the classes that its masks show."""

    def section(self, tasks: Sequence[str], num: int) -> Section:
        rows: list[_Row] = []
        for found in zip(*(self.loaders[task].in_place() for task in tasks), strict=False):
            if len(rows) == num:
                break
            batches = [batch for batch in found if batch is not None]
            if (
                len(batches) == len(tasks) and len({batch.keys for batch in batches}) == 1
            ):  # all tasks can read the sample
                rows.append(self._row(batches, first=not rows))
        together = _arranged(rows, tasks)
        return Section(together, self._legend(tasks))

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
        """Of the classes that are there; with the task's name where several tasks have masks."""
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
    """The panels of each row in their order. Groups that are alike for all tasks in all rows are there
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
    """Where a task has several texts, one panel in which each stands under its caption."""
    if len(panels) < 2 or any(isinstance(panel.content, np.ndarray) for panel in panels):
        return list(panels)
    lines = [
        line for panel in panels for line in (f"{panel.caption}:", *(f"  {text}" for text in panel.content))
    ]
    return [Panel(lines, "")]
