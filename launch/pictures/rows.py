"""The rows of `dtem visualise`: samples of a split, each with the results of all tasks that read it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from launch.measure.compute import first_grid
from launch.pictures.page import Row, Section
from launch.report.words import task_words
from launch.saved.run import checked_reduction
from pipeline.config.schema import DataConfig
from pipeline.data.shards.held_out import setting_of
from pipeline.data.stream import EvalLoader, build_eval_loader
from pipeline.drawing.groups import checked_blocks, default_blocks, draw_groups, picture_of
from pipeline.drawing.palette import class_colours, ground_of
from pipeline.drawing.panels import Drawing, Panel
from pipeline.drawing.sample import draw_sample
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch
from pipeline.merging.schedule import ReductionSpec
from pipeline.model import MultiTaskModel

GROUPS, ALIKE = "merged groups", "merged groups, alike for all tasks"


@dataclass(frozen=True)
class Choice:
    """What is drawn. num: the first samples of a split, unless keys name some. reductions: without any,
    each task's own. blocks: counted from 1; None: three, spread over the depth. film: draw the groups after
    every block beside. Raises ConfigError."""

    num: int = 8
    keys: Sequence[str] = ()
    reductions: Sequence[ReductionSpec] = ()
    blocks: Sequence[int] | None = None
    split: str = "val"
    film: bool = False

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ConfigError(f"--num {self.num}: give 1 image or more")


def make_sections(
    model: MultiTaskModel,
    datas: Mapping[str, DataConfig],
    choice: Choice,
    classes: Mapping[str, Sequence[str]] | None = None,
) -> list[Section]:
    """Image, answers and groups of the chosen samples, for each task of `datas`.

    Tasks with the same images share their rows. classes (by task): see build_eval_loader. Raises ConfigError
    for unknown blocks and keys, and for reductions that need more tokens than the first image has.
    """
    depth = model.backbone.depth
    choice = replace(choice, blocks=checked_blocks(choice.blocks or default_blocks(depth), depth))
    one, names = dict(eval_batch_size=1, workers=0), classes or {}
    loaders = {
        task: build_eval_loader(
            task,
            replace(data, **one),
            rank=0,
            world_size=1,
            split=choice.split,
            classes=names.get(task, ()),
        )
        for task, data in datas.items()
    }
    model.check_data(loaders)
    shared = _of_one_source(datas, choice.split)
    painter = _Painter(model, loaders, choice)
    return [painter.section(tasks, len(shared) > 1) for tasks in shared]


def _of_one_source(datas: Mapping[str, DataConfig], split: str) -> list[list[str]]:
    """Groups of tasks that have the same images."""
    sources: dict[str, list[str]] = {}
    for task, data in datas.items():
        sources.setdefault(repr((setting_of(data, split)[1], data.img_size)), []).append(task)
    return list(sources.values())


@dataclass
class _Painter:
    model: MultiTaskModel
    loaders: Mapping[str, EvalLoader]
    choice: Choice

    def section(self, tasks: Sequence[str], headed: bool) -> Section:
        heading = ", ".join(map(task_words, tasks)) if headed else ""
        drawn: list[dict[str, Drawing]] = []
        films: list[dict[str, list[Panel]]] = []
        for batches in self._samples(tasks, heading):
            drawn.append({batch.task: self._draw(batch) for batch in batches})
            films.append({batch.task: self._film(batch) for batch in batches if self.choice.film})
        alike = all(_equal(own[tasks[0]].groups, own[task].groups) for own in drawn for task in tasks)
        rows = [self._row(own, film, alike) for own, film in zip(drawn, films, strict=True)]
        return Section(rows, self._legend(tasks, drawn), heading)

    def _samples(self, tasks: Sequence[str], heading: str) -> Iterator[list[Batch]]:
        """The batches of each chosen sample that all of the tasks can read, one for each task."""
        loaders = [self.loaders[task] for task in tasks]
        for loader in loaders if self.choice.keys else ():
            loader.keep(self.choice.keys)
        there, done = min(map(len, loaders)), 0
        most = there if self.choice.keys else min(self.choice.num, there)
        with tqdm(total=most, desc=heading or "images", disable=None, leave=False) as bar:
            for found in zip(*(loader.in_place() for loader in loaders), strict=False):
                if done == most:
                    break
                batches = [batch for own in found for batch in own]
                if len(batches) == len(tasks) and len({batch.keys for batch in batches}) == 1:
                    if not done:
                        self._check(batches)
                    yield batches
                    done += 1
                    bar.update()

    def _check(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            for reduction in self.choice.reductions or ():
                checked_reduction(self.model, first_grid(self.model, batch), reduction)

    def _draw(self, batch: Batch) -> Drawing:
        return draw_sample(
            self.model,
            batch,
            reductions=self.choice.reductions or [None],
            blocks=self.choice.blocks,
            classes=self.loaders[batch.task].classes,
        )

    def _film(self, batch: Batch) -> list[Panel]:
        """The groups after each block, at the first reduction after all blocks, then at the next."""
        picture, moved = picture_of(batch.images[0]), batch.to(next(self.model.parameters()).device)
        every = range(1, self.model.backbone.depth + 1)
        reductions = self.choice.reductions or [None]
        return draw_groups(self.model, batch.task, moved.images[0], picture, reductions, every)

    def _row(self, drawn: Mapping[str, Drawing], films: Mapping[str, list[Panel]], alike: bool) -> Row:
        """One row of the drawings of a sample by several tasks. alike: groups are shown once for all."""
        first, depth = next(iter(drawn.values())), self.model.backbone.depth
        panels: list[Panel] = [replace(first.image, caption="")]
        for task, own in drawn.items():
            panels += [
                replace(panel, owner=task_words(task) if len(drawn) > 1 else "") for panel in own.answers
            ]
        owners = {task: f"{GROUPS}, {task_words(task)}" for task in drawn}
        if alike:
            owners = {next(iter(drawn)): ALIKE if len(drawn) > 1 else GROUPS}
        shown: list[Panel] = []
        for task, owner in owners.items():
            panels += [replace(panel, owner=owner) for panel in drawn[task].groups]
            shown += [replace(panel, owner=owner) for panel in films.get(task, ())]
        right = [own.right for own in drawn.values() if own.right is not None]
        changed = any(own.changed for own in drawn.values())
        film = [shown[block::depth] for block in range(depth)] if shown else []
        return Row(first.key, panels, all(right) if right else None, changed, film)

    def _legend(self, tasks: Sequence[str], drawn: Sequence[Mapping[str, Drawing]]) -> dict[str, np.ndarray]:
        """The colours of the classes in the masks; with the names of tasks if several have masks."""
        legend: dict[str, np.ndarray] = {}
        present = {task: frozenset[int]().union(*(own[task].present for own in drawn)) for task in tasks}
        several = sum(bool(found) for found in present.values()) > 1
        for task, found in present.items():
            classes = self.loaders[task].classes
            colours = class_colours(len(classes), ground_of(classes))
            legend |= {
                f"{task_words(task)}: {classes[i]}" if several else classes[i]: colours[i]
                for i in sorted(found)
                if i < len(classes)
            }
        return legend


def _equal(panels: Sequence[Panel], others: Sequence[Panel]) -> bool:
    pairs = list(zip(panels, others, strict=True))
    return all(
        one.caption == other.caption and np.array_equal(one.content, other.content)  # pyright: ignore[reportArgumentType]
        for one, other in pairs
    )
