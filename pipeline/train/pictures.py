"""Sample pictures of a run at an evaluation: RUN/pictures/step_N/TASK_I.png, and in pictures.json what they
show, in words."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from pipeline.data.stream import build_eval_loader, evaluated_split
from pipeline.drawing.panels import Drawing, Line, Text
from pipeline.drawing.sample import draw_sample
from pipeline.errors import PipelineError, printable
from pipeline.files import folder_within, replacing, write_text
from pipeline.interfaces import Batch
from pipeline.modes import evaluation_mode
from pipeline.run_folder import folder_name
from pipeline.train.collective import anywhere
from pipeline.train.run import Run
from pipeline.train.trackers.tracker import Picture

log = logging.getLogger(__name__)
T = TypeVar("T")

GAP = 6
"""White pixels between panels."""


def draw_pictures(run: Run) -> dict[str, Picture]:
    """Draws the first samples of each task that is evaluated, with the weights as they are, and writes them
    on rank 0. What cannot be drawn is left out with a word. Called by every rank: where the ranks divide the
    weights, all of them compute."""
    if run.engine.rank > 0 and not run.engine.forward_is_collective:
        return {}
    sheets = _Sheets(run)
    with evaluation_mode(run.engine.module):
        for task in run.loaders:
            batches = _batches(run, task)
            for i in range(run.config.log.pictures):
                batch = sheets.tried(partial(next, batches, None))
                if _over(run, batch is None) or batch is None:
                    break
                draw = partial(draw_sample, batch=batch, classes=run.loaders[task].classes)
                drawing = sheets.tried(partial(run.engine.module.as_forward, draw))
                if drawing is not None and run.engine.rank == 0:
                    sheets.tried(partial(sheets.add, task, i, drawing))
    if run.engine.rank == 0:
        sheets.tried(sheets.close)
    if sheets.trouble is not None:
        log.warning("pictures of step %d are left out: %s", run.progress.step, sheets.trouble)
    return sheets.pictures


def _over(run: Run, over: bool) -> bool:
    """Whether it is over on this rank, or on any that it computes with."""
    return anywhere(run.engine, over) if run.engine.forward_is_collective else over


class _Sheets:
    """The pictures of one evaluation. trouble: what first went wrong, after which nothing is tried."""

    def __init__(self, run: Run):
        self.pictures: dict[str, Picture] = {}
        self.trouble: Exception | None = None
        self._output, self._step = Path(run.config.output), run.progress.step
        self._told: list[dict[str, Any]] = []

    def tried(self, work: Callable[[], T]) -> T | None:
        """What the work gives; None where it, or something before it, goes wrong."""
        try:
            return work() if self.trouble is None else None
        except (PipelineError, OSError) as err:
            self.trouble = err
            return None

    @property
    def _folder(self) -> Path:
        return folder_within(folder_within(self._output, "pictures"), folder_name(self._step))

    def add(self, task: str, i: int, drawing: Drawing) -> None:
        picture = Picture(self._folder / f"{task}_{i}.png", "; ".join(words_of(drawing)))
        _write_png(drawing, picture.path)
        self.pictures[f"{task}/{i}"] = picture
        self._told.append(_facts(task, picture, drawing))

    def close(self) -> None:
        write_text(self._folder / "pictures.json", json.dumps(self._told, indent=1))


def _batches(run: Run, task: str) -> Iterator[Batch]:
    """The first samples, the same on every rank, in batches of one."""
    data = replace(run.config.tasks[task].data, eval_batch_size=1, workers=0)
    names, split = run.loaders[task].classes, evaluated_split(data)
    loader = build_eval_loader(task, data, rank=0, world_size=1, split=split, classes=names)
    for found in loader.in_place():
        yield from found


def _facts(task: str, picture: Picture, drawing: Drawing) -> dict[str, Any]:
    return {
        "task": task,
        "key": drawing.key,
        "file": picture.path.name,
        "words": words_of(drawing),
        "right": drawing.right,
    }


def words_of(drawing: Drawing) -> list[str]:
    """What a picture shows, line by line: its panels from left to right, then the answers in words."""
    pictures = [own for own in drawing.panels if not isinstance(own.content, Text)]
    lines = ["from the left: " + ", ".join(own.caption for own in pictures)]
    for panel in drawing.answers:
        if isinstance(panel.content, Text):
            lines += [_line(own) for own in panel.content.answers]
            lines += [f"{panel.content.heading}: {own}" for own in panel.content.references]
    return [printable(line) for line in lines]


def _line(line: Line) -> str:
    said = "" if line.right is None else " (right)" if line.right else " (wrong)"
    return f"{line.label}: {line.text}{said}" if line.label else f"{line.text}{said}"


def _write_png(drawing: Drawing, path: Path) -> None:
    """The panels with pictures in a row, on white."""
    shown = [own.content for own in drawing.panels if not isinstance(own.content, Text)]
    height = max(content.shape[0] for content in shown)
    width = sum(content.shape[1] for content in shown) + GAP * (len(shown) - 1)
    sheet, left = np.full((height, width, 3), 255, dtype=np.uint8), 0
    for content in shown:
        sheet[: content.shape[0], left : left + content.shape[1]] = content
        left += content.shape[1] + GAP
    with replacing(path) as part, open(part, "wb") as file:
        Image.fromarray(sheet).save(file, format="png", optimize=True)
