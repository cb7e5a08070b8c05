"""The page of `dtem visualise`: a row for each of the first validation images."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from launch.captions import write_captions
from launch.groups import default_blocks, draw_groups, picture_of
from launch.overlay import class_colours, draw_segmentation
from launch.pages import Page, Panel
from launch.restore import checked_reduction
from launch.workload import first_grid
from pipeline.config.schema import DataConfig
from pipeline.data.stream import build_eval_loader
from pipeline.data.targets import CaptionTargets, MaskTargets
from pipeline.errors import ConfigError
from pipeline.merging.schedule import ReductionSpec
from pipeline.model import MultiTaskModel


def make_page(
    model: MultiTaskModel,
    task: str,
    data: DataConfig,
    title: str,
    *,
    num: int,
    reductions: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
) -> Page:
    """Image, reference and predictions where the task has masks or captions, and the groups after each block at each reduction.

    reductions None: the run's own.

    Raises ConfigError for blocks that are not there, and reductions that the first image has too few tokens for.
    """
    blocks = blocks or default_blocks(model.backbone.depth)
    if max(blocks) >= model.backbone.depth:
        raise ConfigError(f"--blocks {max(blocks)}: the backbone's blocks are 0 to {model.backbone.depth - 1}")
    loader = build_eval_loader(task, replace(data, eval_batch_size=1, workers=0), rank=0, world_size=1)
    model.check_data({task: loader})
    rows: list[list[Panel]] = []
    present: set[int] = set()
    specs: list[ReductionSpec | None] = list(reductions or [None])
    for batch in islice(loader, num):
        for reduction in (reductions or ()) if not rows else ():
            checked_reduction(model, first_grid(model, batch), reduction)
        picture = picture_of(batch.images[0], data.augment)
        rows.append([Panel(picture, "image")])
        if isinstance(batch.targets, MaskTargets):
            panels, found = draw_segmentation(model, batch, picture, specs)
            rows[-1] += panels
            present |= found
        if isinstance(batch.targets, CaptionTargets):
            rows[-1] += write_captions(model, batch, specs)
        rows[-1] += draw_groups(model, task, batch.images[0], picture, specs, blocks)
    colours = class_colours(max(present, default=0) + 1)
    return Page(title, rows, {loader.classes[i]: colours[i] for i in sorted(present) if i < len(loader.classes)})
