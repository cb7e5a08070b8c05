"""Loading of weights, under the keys of any known project, into a backbone or a whole model."""

import logging
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from pipeline.backbone.backbone import Backbone
from pipeline.backbone.key_start import start_embeddings
from pipeline.backbone.weights.another import another, check_blocks, depth_of
from pipeline.backbone.weights.big_vision import big_vision_weights
from pipeline.backbone.weights.clips import for_clips, videomae_weights
from pipeline.backbone.weights.dialects import DIALECTS, translated
from pipeline.backbone.weights.dtem_release import dtem_release_weights
from pipeline.backbone.weights.huggingface import huggingface_weights
from pipeline.backbone.weights.keys import backbone_of, heads_of, plain_key, shapes, sources_of
from pipeline.backbone.weights.lemevit import lemevit_weights
from pipeline.backbone.weights.openmmlab import openmmlab_weights
from pipeline.backbone.weights.positions import resampled
from pipeline.backbone.weights.report import LoadReport
from pipeline.backbone.weights.stated import Stated, check_stated
from pipeline.backbone.weights.torchvision import torchvision_weights
from pipeline.errors import CheckpointError
from pipeline.parts import BASE, roles_of
from pipeline.token_state import Grid

log = logging.getLogger(__name__)

DIALECTS |= {
    "mmseg and mmpretrain": openmmlab_weights,
    "the DTEM release": dtem_release_weights,
    "transformers": huggingface_weights,
    "big_vision": big_vision_weights,
    "torchvision": torchvision_weights,
    "VideoMAE": videomae_weights,
    "LeMeViT": lemevit_weights,
}

FILLED = 0.9
"""Least share of a backbone's numbers, metric embeddings excluded, that weights have to fill. Weights that
fill fewer are of another architecture, or have keys of an unknown style."""


def load_weights(
    module: nn.Module, state_dict: Mapping[str, Tensor], *, grid: Grid | None = None
) -> LoadReport:
    """Copies the tensors that fit into a backbone or MultiTaskModel, in place. Keys may be timm's, ours,
    those of a project in DIALECTS, or of one that timm itself reads, such as DINOv2.

    A position embedding of another grid is resampled. Weights of images fill a backbone of clips, inflated
    (`for_clips`). grid: (rows, columns) of the checkpoint; None: what its file says, else a square. The head
    of a timm classifier fills the only task, or all tasks whose heads have its shapes. The head of another
    model fills the task of the same name, or the only task where both models have one. Tensors that depend
    on another number of classes keep their values, as with timm's `num_classes`; so do the weights of the
    losses, which belong to a run. Metric embeddings that the checkpoint has not, and whose policy starts
    them at the keys, start anew at its keys.

    Raises CheckpointError, and leaves the module as it was, where no tensor fits, where the backbone is
    filled in part but not to FILLED, where a tensor of a block has no counterpart, where one has another
    shape, or where a config beside the weights states other heads or another activation.
    """
    own = dict(module.state_dict(keep_vars=True))
    grid = grid or getattr(state_dict, "grid", None)
    check_stated(getattr(state_dict, "stated", None) or Stated(), backbone_of(module))
    given = {plain_key(key): value for key, value in translated(state_dict, module).items()}
    given = for_clips(given, backbone_of(module))
    sources, redrawn = sources_of(module, own, given)
    if not sources:
        raise CheckpointError(
            f"no key of the checkpoint fits this model: it has {next(iter(given), 'none')}, the model "
            f"{next(iter(own))}"
        )
    filled = set(sources.values())
    left = tuple(key for key in given if key not in filled)
    roles = roles_of(module)
    if any(roles[key].kind == BASE for key in sources):
        check_filled(module, sources, f"tensors such as {left[0]}" if left else "the tensors")
        lacking = [plain_key(key) for key in own if roles[key].kind == BASE and key not in sources]
        check_blocks(lacking, left, given, len(backbone_of(module).blocks))
    values = {key: given[source] for key, source in sources.items()}
    grids = _resample_positions(values, own, backbone_of(module), grid)
    for key, value in values.items():
        _check_shape(key, own[key], value, given)
    with torch.no_grad():
        for key, value in values.items():
            own[key].copy_(value)
    _warn_of_spare_blocks(left, backbone_of(module))
    blocks_are_others = any(roles[key].kind == BASE for key in sources)
    started = tuple(start_embeddings(module, sources)) if blocks_are_others else ()
    missing = tuple(key for key in own if key not in sources and key not in started)
    return LoadReport(sources, missing, left, redrawn, grids, _places_of_heads(module, sources), started)


def check_filled(module: nn.Module, filled: Collection[str], source: str) -> None:
    """Raises CheckpointError where less than FILLED of the backbone's numbers got a value. filled: keys of
    the module that did."""
    roles = roles_of(module)
    own = {key: value.numel() for key, value in module.state_dict().items() if roles[key].kind == BASE}
    part = sum(number for key, number in own.items() if key in filled) / sum(own.values())
    if part < FILLED:
        lacking = next(key for key in own if key not in filled)
        raise CheckpointError(
            f"{source} fill {part:.0%} of the backbone's numbers, and not {lacking}: another architecture, "
            "or keys of a style that is not known; give weights with timm's keys, those that timm reads, or "
            f"those of {', '.join(DIALECTS)}, of the model in backbone.name and backbone.options"
        )


def _resample_positions(
    values: dict[str, Tensor], own: Mapping[str, Tensor], backbone: Backbone, grid: Grid | None
) -> tuple[Grid, Grid] | None:
    """Resamples the position embedding in `values` to the backbone's grid. Both grids, where they differ."""
    for key in values:
        if key.removeprefix("backbone.") == "pos_embed":
            values[key], grids = resampled(values[key], own[key], backbone, grid)
            return grids
    return None


def _check_shape(key: str, own: Tensor, value: Tensor, given: Mapping[str, Tensor]) -> None:
    if own.shape == value.shape:
        return
    is_positions = key.endswith("pos_embed")
    why = " (of another grid than a square one, or with other prefix tokens)" if is_positions else ""
    raise another(f"'{key}' is {shapes(own, value)}{why}", given)


def _warn_of_spare_blocks(left: Collection[str], backbone: Backbone) -> None:
    depth = len(backbone.blocks)
    if (spare := depth_of(left) - depth) > 0:
        text = "the weights have %d blocks more than the model, which has %d: the last ones are not used"
        log.warning(text, spare, depth)


def _places_of_heads(module: nn.Module, sources: Mapping[str, str]) -> dict[str, str]:
    """Task -> place of its head in the checkpoint."""
    heads = heads_of(module)
    return {
        heads[key][0]: name.removesuffix(heads[key][1]).rstrip(".")
        for key, name in sources.items()
        if key in heads
    }
