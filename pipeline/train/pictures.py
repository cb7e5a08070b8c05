"""Sample pictures of a run at an evaluation: RUN/pictures/step_N/TASK_I.png, and in pictures.json what they
show, in words."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.config.schema import RunConfig
from pipeline.data.stream import build_eval_loader, evaluated_split
from pipeline.drawing.panels import Drawing, Line, Text
from pipeline.drawing.sample import draw_sample
from pipeline.engine import divides_weights
from pipeline.errors import ConfigError, PipelineError, printable
from pipeline.files import folder_within, replacing, write_text
from pipeline.modes import evaluation_mode
from pipeline.run_folder import folder_name
from pipeline.train.run import Run
from pipeline.train.trackers.tracker import Picture

log = logging.getLogger(__name__)

GAP = 6
"""White pixels between panels."""


def check_pictures(config: RunConfig) -> None:
    """Raises ConfigError where nobody could draw: a rank alone cannot run a model that is divided."""
    if config.log.pictures and divides_weights(config):
        raise ConfigError(
            "log.pictures: the ranks divide the weights, and rank 0 draws alone; give log.pictures=0, and "
            "draw with `dtem visualise`"
        )


def draw_pictures(run: Run) -> dict[str, Picture]:
    """Draws the first samples of each task that is evaluated, on rank 0, with the weights as they are. What
    cannot be drawn is left out with a word."""
    if run.engine.rank > 0:
        return {}
    found: dict[str, Picture] = {}
    try:
        root = folder_within(Path(run.config.output), "pictures")
        folder = folder_within(root, folder_name(run.progress.step))
        told: list[dict[str, Any]] = []
        with evaluation_mode(run.engine.module):
            for task in run.loaders:
                for i, drawing in enumerate(_drawings(run, task)):
                    picture = Picture(folder / f"{task}_{i}.png", "; ".join(words_of(drawing)))
                    _write_png(drawing, picture.path)
                    found[f"{task}/{i}"] = picture
                    told.append(_facts(task, picture, drawing))
        write_text(folder / "pictures.json", json.dumps(told, indent=1))
    except (PipelineError, OSError) as err:
        log.warning("pictures of step %d are left out: %s", run.progress.step, err)
    return found


def _drawings(run: Run, task: str) -> Iterator[Drawing]:
    data = replace(run.config.tasks[task].data, eval_batch_size=1, workers=0)
    names = run.loaders[task].classes
    split = evaluated_split(data)
    loader = build_eval_loader(task, data, rank=0, world_size=1, split=split, classes=names)
    batches = (batch for found in loader.in_place() for batch in found)
    for batch in islice(batches, run.config.log.pictures):
        yield draw_sample(run.engine.module, batch, classes=names)


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
