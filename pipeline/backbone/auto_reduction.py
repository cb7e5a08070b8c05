"""`auto:R`: merging in those blocks alone where it pays on a device, measured once and then stated as r per
block."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pipeline.backbone.backbone import Backbone
from pipeline.backbone.block_times import Clock, clock_of, paying_blocks, random_images, within_memory
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.backbone.vit import MergingViT
from pipeline.config.overrides import parse_value
from pipeline.errors import ConfigError
from pipeline.merging.schedule import ReductionSpec
from pipeline.modes import evaluation_mode
from pipeline.token_state import TokenState

log = logging.getLogger(__name__)

AUTO = "auto"
BATCH = 16
"""Images at once, where none are given."""
DIGITS = 9
"""Of the most images at once."""


@dataclass(frozen=True)
class Auto:
    """What is asked for: a reduction, of which what pays is kept (None: the model's own), and the images at
    once for which it has to pay. kept: in place of both, what the thresholds of the model keep
    (`pipeline.backbone.threshold`)."""

    reduction: ReductionSpec | None = None
    batch: int = BATCH
    kept: bool = False

    @property
    def of_published(self) -> ReductionSpec | None:
        """The reduction, of a model that is no run. Raises ConfigError where learned ones are asked for."""
        if self.kept:
            raise ConfigError(
                "reduction 'kept' is what the thresholds of a run keep, and a published model has none "
                "that were trained; give another reduction"
            )
        return self.reduction


def read_auto(text: str) -> Auto:
    """`auto`, `auto:13` or `auto:13@64`, where 13 stands for any reduction and 64 for images at once. Raises
    ConfigError."""
    rest, at, batch = text.partition("@")
    kind, colon, wished = rest.partition(":")
    value = parse_value(wished) if wished else None
    known = value is None or (isinstance(value, int | float | tuple | list) and not isinstance(value, bool))
    named = kind == AUTO and known and bool(colon) == bool(wished)
    if not named or (at and not (batch.isdecimal() and len(batch) <= DIGITS and int(batch) > 0)):
        raise ConfigError(f"reduction '{text}' is none of auto, auto:R and auto:R@IMAGES, such as auto:13@64")
    return Auto(value, int(batch) if at else BATCH)


def paying_reduction(
    model: Backbone | MergingModel,
    reduction: ReductionSpec,
    *,
    batch: int = BATCH,
    size: tuple[int, int] | None = None,
    task: str | None = None,
    clock: Clock | None = None,
) -> list[int]:
    """r of each block: that of the reduction, or 0 where the merge takes longer on the model's device than it
    saves there and in later blocks.

    Each block is timed with and without its merge, at two lengths, on random images: a few forward passes in
    all. Run it under the precision (torch.autocast) that will be used. batch: images at once. size: their
    (height, width) in pixels; None takes what the model is made for. task: of which the embedding decides,
    where tasks have their own. clock: seconds; None waits for the device before it looks. Raises ConfigError
    for a wrong reduction, a wrong size, a model of unknown size, and images that memory does not hold.
    """
    if batch < 1:
        raise ConfigError(f"batch is {batch}; give 1 or more images")
    if not isinstance(model, MergingViT | MergingModel):
        return [0] * model.depth
    like = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    size = size or _made_for(model)
    with within_memory(batch, size, like.device), evaluation_mode(model):
        shape = model.input_shape(size) if isinstance(model, MergingViT) else (3, *size)
        images = random_images(batch, shape, like)
        if isinstance(model, MergingViT):
            blocks, run = list(model.blocks), partial(_run_vit, model, images, task)
            grid, prefix = model.grid_of(images), model.num_prefix
            tokens, policy = math.prod(grid) + prefix, model.policy
        else:
            blocks, run = list(model.merging_blocks), partial(_run_patched, model, images)
            state = _embedded(model, images[:1])
            tokens, prefix, policy = state.num_active, state.num_prefix, model.merging.policy
        wished = policy.schedule(reduction, len(blocks), tokens, prefix)
        found = paying_blocks(blocks, run, wished, tokens, clock=clock or clock_of(like.device))
    log.info(
        "of reduction %s, the merges of %d of %d blocks pay for %d images at once on %s: %s",
        *(reduction, sum(r > 0 for r in found), sum(r > 0 for r in wished), batch, like.device, found),
    )
    return found


def _run_vit(model: MergingViT, images: Tensor, task: str | None, schedule: Sequence[int]) -> object:
    return model(images, reduction=list(schedule), relaxed=False, training=False, task=task)


def _run_patched(model: MergingModel, images: Tensor, schedule: Sequence[int]) -> object:
    return model.encode(images, reduction=list(schedule), relaxed=False)


@torch.no_grad()
def _embedded(model: MergingModel, image: Tensor) -> TokenState:
    """What enters the first block. Raises ConfigError for a model that wants more than images."""
    try:
        return model.embedded(image).state
    except (AssertionError, RuntimeError, TypeError, ValueError) as err:
        reason = str(err).strip().partition("\n")[0] or type(err).__name__
        raise ConfigError(
            f"no forward pass of {type(model).__name__} on images of {image.shape[-2]}x{image.shape[-1]} "
            f"pixels can be timed: {reason}; give another size, or r per block in place of 'auto'"
        ) from err


def _made_for(model: MergingViT | MergingModel) -> tuple[int, int]:
    """(height, width) in pixels of the images that a model is made for. Raises ConfigError."""
    if isinstance(model, MergingViT):
        return model.grid[-2] * model.patch_size[0], model.grid[-1] * model.patch_size[1]
    own = getattr(getattr(model, "patch_embed", None), "img_size", None)
    size = own or getattr(getattr(model, "config", None), "image_size", None)
    if size is None:
        raise ConfigError(
            f"the size of the images of {type(model).__name__} is not known; give size=(height, width)"
        )
    return (size, size) if isinstance(size, int) else (size[0], size[1])
