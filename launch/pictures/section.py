"""A section of a page, laid out of what was drawn of each sample by each task."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from launch.pictures.page import Row, Section
from launch.report.words import task_words
from pipeline.drawing.palette import class_colours, ground_of
from pipeline.drawing.panels import Drawing, Panel

GROUPS, ALIKE = "merged groups", "merged groups, alike for all tasks"
Drawn = Sequence[Mapping[str, Drawing]]
"""For each sample: task -> what it draws."""
Films = Sequence[Mapping[str, Sequence[Panel]]]
"""For each sample: task -> the groups after each block, at the first reduction after all blocks, then at the
next; empty where no film was asked for."""


def section_of(
    drawn: Drawn, films: Films, classes: Mapping[str, Sequence[str]], depth: int, heading: str = ""
) -> Section:
    """classes: of each task. depth: number of blocks, of which a film has a picture each."""
    tasks = list(drawn[0]) if drawn else []
    alike = all(_equal(own[tasks[0]].groups, own[task].groups) for own in drawn for task in tasks)
    rows = [_row(own, film, alike, depth) for own, film in zip(drawn, films, strict=True)]
    return Section(rows, _legend(tasks, drawn, classes), heading)


def _row(drawn: Mapping[str, Drawing], films: Mapping[str, Sequence[Panel]], alike: bool, depth: int) -> Row:
    """One row of the drawings of a sample by several tasks. alike: groups are shown once for all."""
    first = next(iter(drawn.values()))
    panels: list[Panel] = [replace(first.image, caption="")]
    for task, own in drawn.items():
        panels += [replace(panel, owner=task_words(task) if len(drawn) > 1 else "") for panel in own.answers]
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


def _legend(
    tasks: Sequence[str], drawn: Drawn, of_tasks: Mapping[str, Sequence[str]]
) -> dict[str, np.ndarray]:
    """The colours of the classes in the masks; with the names of tasks if several have masks."""
    legend: dict[str, np.ndarray] = {}
    present = {task: frozenset[int]().union(*(own[task].present for own in drawn)) for task in tasks}
    several = sum(bool(found) for found in present.values()) > 1
    for task, found in present.items():
        classes = of_tasks.get(task, ())
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
