"""The rows of `dtem visualise --images`: pictures of the user's own, of which nothing is known."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from tqdm import tqdm

from launch.pictures.page import Section
from launch.pictures.rows import Choice, draw_batch
from launch.pictures.section import section_of
from launch.predict.images import Picture, files_of, pictures_of
from launch.predict.loaded import LoadedRun
from launch.predict.models import PublishedModel, RunModel, most_likely, patch_of
from launch.predict.results import Unread
from pipeline.drawing.groups import (
    checked_blocks,
    default_blocks,
    panels_of_states,
    picture_of,
    reduction_text,
)
from pipeline.drawing.panels import Drawing, Line, Panel, Text
from pipeline.errors import ConfigError, SampleError

MOST = 200
"""Images of a page that programs still open."""
Drawn = tuple[Drawing, list[Panel]]
"""What is drawn of an image, and its film."""


def sections_of_images(
    loaded: LoadedRun, paths: Sequence[str], tasks: Sequence[str], choice: Choice
) -> tuple[list[Section], list[Unread]]:
    """One section with a row for each image that can be read, and those that cannot. paths: of pictures, and
    of folders of them. Raises ConfigError, also for more images than a page holds, and SampleError where none
    can be read."""
    model = loaded.predicting
    assert isinstance(model, RunModel | PublishedModel)
    files = list(files_of(paths))
    if len(files) > MOST:
        raise ConfigError(f"--images has {len(files)} pictures; a page holds {MOST}: give fewer")
    depth = _depth(model)
    choice = replace(choice, blocks=checked_blocks(choice.blocks or default_blocks(depth), depth))
    drawn: list[dict[str, Drawn]] = []
    unread: list[Unread] = []
    for picture in tqdm(pictures_of(files), total=len(files), desc="images", disable=None, leave=False):
        try:
            if isinstance(picture, Unread):
                raise SampleError(picture.reason)
            drawn.append({task: _draw(model, task, picture, choice) for task in tasks})
        except SampleError as err:
            name = picture.image if isinstance(picture, Unread) else picture.name
            unread.append(Unread(name, str(err)))
    if not drawn:
        raise SampleError(f"none of {len(unread)} images can be read: {unread[0].image} ({unread[0].reason})")
    classes = {task: _classes(model, task) for task in tasks}
    drawings = [{task: own for task, (own, _) in found.items()} for found in drawn]
    films = [{task: film for task, (_, film) in found.items()} for found in drawn]
    return [section_of(drawings, films, classes, depth)], unread


def _depth(model: RunModel | PublishedModel) -> int:
    return model.model.backbone.depth if isinstance(model, RunModel) else len(model.model.merging_blocks)


def _classes(model: RunModel | PublishedModel, task: str) -> Sequence[str]:
    return model.run.classes(task) if isinstance(model, RunModel) else model.names


def _draw(model: RunModel | PublishedModel, task: str, picture: Picture, choice: Choice) -> Drawn:
    seen = model.seen(task, picture.pixels)
    if isinstance(model, RunModel):
        batch = model.batch_of(task, [(picture, seen)])
        return draw_batch(model.model, batch, choice, model.run.classes(task))
    return _draw_published(model, picture.name, seen, choice)


def _draw_published(model: PublishedModel, name: str, seen: torch.Tensor, choice: Choice) -> Drawn:
    """seen: uint8 [3, height, width]."""
    shown, size = picture_of(seen), (seen.shape[1], seen.shape[2])
    taps = range(len(model.model.merging_blocks))
    lines: list[Line] = []
    groups: list[Panel] = []
    film: list[Panel] = []
    for reduction in [0, *(choice.reductions or [None])]:
        logits, output = model.answer(seen[None], reduction=reduction, taps=taps)
        lines.append(_line(model, logits[0], reduction_text(reduction), merged=reduction != 0))
        if len(lines) > 1:
            where = reduction, shown, size, patch_of(output.final, seen[None])
            states = [output.taps[block - 1] for block in choice.blocks or ()]
            groups += panels_of_states(states, choice.blocks or (), *where)
            every = range(1, len(taps) + 1) if choice.film else ()
            film += panels_of_states(output.taps[: len(every)], every, *where)
    changed = len({line.text.rpartition(" %")[0].rpartition(" ")[0] for line in lines}) > 1
    text = (Panel(Text(tuple(lines))),)
    return Drawing(name, Panel(shown, "image"), text, tuple(groups), changed=changed), film


def _line(model: PublishedModel, logits: torch.Tensor, label: str, *, merged: bool) -> Line:
    _, (name,), (share,) = most_likely(logits, model.names, 1)
    return Line(f"{name.split(',')[0]} {100 * share:.0f} %", label, merged=merged)


def check_merges(loaded: LoadedRun, reductions: Sequence[object]) -> None:
    """Raises ConfigError for a published model of which nobody says how it merges."""
    model = loaded.predicting
    if isinstance(model, PublishedModel) and (
        model.policy == "none" or not (reductions or model.model.reduction)
    ):
        raise ConfigError(
            f"{loaded.name} does not merge by itself: give how and how much, for instance --policy tome "
            "--reduction 13, or --adapter FOLDER"
        )
