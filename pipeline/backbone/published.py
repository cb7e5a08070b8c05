"""Models that are published under a name, or lie in a folder: of timm, or of Hugging Face transformers.

timm:NAME           timm's weights of this name; NAME alone is the same
local-dir:FOLDER    a folder that `dtem export` or timm's save_for_hf wrote; FOLDER alone is the same
hf-hub:USER/NAME    the same on the hub
hf:NAME_OR_FOLDER   a model of transformers; its FOLDER alone is the same
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

from pipeline.backbone.adapters.embeddings import SUFFIX, architecture_of, hub_name, pretrained_of
from pipeline.backbone.hugging_face import CLASSIFIER, check_size, open_model, pixels_on_hub
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.backbone.patching.patch import obstacle_in, unpatch
from pipeline.backbone.timm_heads import label_names, may_project, num_classes_of
from pipeline.backbone.weights.files import read_state_dict
from pipeline.backbone.weights.folders import read_json
from pipeline.backbone.weights.plain_models import fill_model
from pipeline.backbone.weights.preprocessing import preprocessing_in, preprocessing_of
from pipeline.config.schema import BackboneConfig, ImgSize, Preprocessing, height_width
from pipeline.errors import ConfigError
from pipeline.pixels import Colour
from pipeline.registry import unknown_name

log = logging.getLogger(__name__)
WRONG = (TypeError, AssertionError, RuntimeError, ArithmeticError, ValueError, LookupError)
"""What timm raises where it cannot build a model."""
TIMM, FOLDER, HUB, HF = "timm:", "local-dir:", "hf-hub:", "hf:"


@dataclass(frozen=True)
class Published:
    """A model in evaluation mode, frozen, and what is known of it."""

    name: str
    """As `spelled` gives it."""
    model: nn.Module
    pixels: Preprocessing
    """How its weights want their images."""
    size: tuple[int, int]
    """(height, width) in pixels of the images that it is made for."""
    classes: tuple[str, ...]
    """Names of the labels of its head; empty where they are not known."""
    classifies: bool
    """Whether it ends in logits of classes. A head that only projects features, such as CLIP's, does not."""
    base_model: str | None
    """Name of the weights on the Hugging Face hub; None where they are not from there."""


def spelled(name: str) -> str:
    """The name with what it is of: one of the prefixes above. Raises ConfigError for a name that is none."""
    for prefix in (TIMM, FOLDER, HUB, HF):
        if name.startswith(prefix):
            return name
    folder = Path(name)
    if folder.is_dir():
        config = read_json(folder / "config.json") or {}
        if "architecture" in config:
            return FOLDER + name
        if "model_type" in config or "vision_config" in config:
            return HF + name
        if _reads_clips(folder):
            raise ConfigError(
                f"{name} is the export of a model of clips, and what has no run is asked of images alone; "
                "give the run itself, whose embeddings learn by `dtem train` with train.mode='modular'"
            )
        raise ConfigError(
            f"{name} has no config.json of timm or transformers; give a folder that `dtem export` wrote of a "
            "classifier, timm's save_for_hf or save_pretrained, or timm:NAME with --weights"
        )
    if folder.is_file():
        raise ConfigError(f"{name} is a file of weights; give timm:NAME of its model, and --weights {name}")
    if "/" in name:
        raise ConfigError(f"there is no folder {name}; give hf:{name} or hf-hub:{name} for one on the hub")
    return TIMM + name


def _reads_clips(folder: Path) -> bool:
    """Whether a folder is an export of a model of clips, by what is said beside its file."""
    told = (read_json(folder / "model.json") or {}).get("architecture")
    return isinstance(told, dict) and "frames" in told


def is_published(name: str) -> bool:
    """Whether a text names a published model by one of the prefixes above."""
    return name.startswith((TIMM, FOLDER, HUB, HF))


def open_published(
    name: str,
    *,
    weights: str | None = None,
    pretrained: bool = True,
    img_size: ImgSize | None = None,
    mean: Colour | None = None,
    std: Colour | None = None,
) -> Published:
    """Opens a model whose tokens can merge.

    weights: a file or folder as `read_state_dict` takes it, in place of timm's. pretrained: False draws
    timm's model anew. img_size, mean, std: None takes the model's own; others are warned of. Raises
    ConfigError and CheckpointError.
    """
    name = spelled(name)
    if not name.startswith(TIMM) and (weights or not pretrained):
        raise ConfigError(
            f"{name} has its own weights; give --weights and --no-pretrained with timm:NAME alone"
        )
    asked = {key: value for key, value in (("mean", mean), ("std", std)) if value is not None}
    if name.startswith(HF):
        found = _of_transformers(name, img_size)
    else:
        options: dict[str, Any] = {} if img_size is None else {"img_size": height_width(img_size)}
        found = _of_timm(name, weights, pretrained, options)
    for key, value in asked.items():
        if value != (own := getattr(found.pixels, key)):
            log.warning("%s is %s, where %s has %s; leave it out to have the same", key, value, name, own)
    return replace(found, pixels=replace(found.pixels, **asked))


def _of_timm(name: str, weights: str | None, pretrained: bool, options: dict[str, Any]) -> Published:
    short = name.removeprefix(TIMM)
    if name.startswith(TIMM):
        _check_name(short)
        _refuse_unless_merging(short, options)
    tensors = None if weights is None else read_state_dict(weights)
    try:
        model = timm.create_model(short, pretrained=pretrained and tensors is None, **options)
    except (*WRONG, OSError) as err:
        reason = str(err).strip().partition("\n")[0] or type(err).__name__
        raise ConfigError(
            f"timm cannot build '{short}' with its weights: {reason}; where the network lacks, give "
            "timm:NAME with --weights and a file"
        ) from err
    merges = isinstance(model, MergingModel)
    if merges:  # such as an export
        unpatch(model)
    _refuse_obstacle(model, short)
    _refuse_size(model)
    if tensors is not None:
        log.info("%s: %s", weights, fill_model(model, tensors))
    folder = short.removeprefix(FOLDER) if name.startswith(FOLDER) else weights
    _warn_of_size(_input_size(model), tuple(pretrained_of(model).get("input_size", ())[-2:]), name)
    known_as = short if name.startswith(TIMM) else architecture_of(model)
    classes = label_names(model)
    return Published(
        name,
        model.eval().requires_grad_(False),
        _pixels_of(folder, known_as)[0] if folder else preprocessing_in(pretrained_of(model)),
        _input_size(model),
        classes,
        classifies=num_classes_of(model) > 0 and (bool(classes) or not may_project(model)),
        base_model=None if merges else _base_model(name, pretrained and weights is None),
    )


def _check_name(name: str) -> None:
    """Raises ConfigError for a text that names no model of timm, or one that merges already."""
    architecture = name.partition(".")[0]
    if architecture.endswith(SUFFIX):
        raise ConfigError(f"'{name}' merges already; give timm:{architecture.removesuffix(SUFFIX)}")
    if not timm.is_model(architecture):
        known = [known for known in timm.list_models() if not known.endswith(SUFFIX)]
        raise ConfigError(unknown_name("timm model", name, known))


def _of_transformers(name: str, img_size: ImgSize | None) -> Published:
    where = name.removeprefix(HF)
    model = open_model(where)
    _refuse_obstacle(model, where)
    local, config = Path(where).is_dir(), model.config
    of_images = getattr(config, "vision_config", config)
    made = _both_sides(getattr(of_images, "image_size", None) or 224)
    size = made if img_size is None else height_width(img_size)
    check_size(model, size, made)
    _warn_of_size(size, made, name)
    classifies = type(model).__name__.endswith(CLASSIFIER)
    labels = getattr(config, "id2label", None) or {}
    pixels, stated = _pixels_of(where, "") if local else _pixels_on_hub(where)
    if not stated:
        log.warning("%s does not say how it wants its pixels; ImageNet's mean and std are taken", name)
    return Published(
        name,
        model.eval().requires_grad_(False),
        pixels,
        size,
        tuple(labels[key] for key in sorted(labels)) if classifies else (),
        classifies,
        None if local else where,
    )


def _both_sides(size: Any) -> tuple[int, int]:
    """(height, width) of a size in a config of transformers."""
    return height_width(size if isinstance(size, int) else (size[0], size[1]))


def _refuse_unless_merging(name: str, options: dict[str, Any]) -> None:
    """Raises ConfigError for an architecture whose tokens cannot merge, by a model without memory."""
    try:
        with torch.device("meta"):
            model = timm.create_model(name.partition(".")[0], pretrained=False, **options)
    except WRONG:
        return  # it cannot be built there, or not with these options, which the real one says
    _refuse_obstacle(model, name)


def _refuse_obstacle(model: nn.Module, name: str) -> None:
    if obstacle := obstacle_in(model):
        raise ConfigError(f"'{name}' cannot merge: {obstacle} (docs/models.md)")


def _pixels_of(weights: str, name: str) -> tuple[Preprocessing, bool]:
    """How the weights of a file or folder want their images, and whether they say so; else as timm's weights
    of this name."""
    found, whose = preprocessing_of(BackboneConfig(name=name, weights=weights))
    return found, whose is not None


def _pixels_on_hub(where: str) -> tuple[Preprocessing, bool]:
    """The same for a model of transformers on the hub."""
    found = pixels_on_hub(where)
    return preprocessing_in(found), bool(found)


def _input_size(model: nn.Module) -> tuple[int, int]:
    """(height, width) in pixels that timm's model is made for."""
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return tuple(size) if size is not None else tuple(pretrained_of(model)["input_size"][-2:])


def _refuse_size(model: nn.Module) -> None:
    """Raises ConfigError for images that the patches do not divide, where timm pads none."""
    embed = getattr(model, "patch_embed", None)
    patch, pads = getattr(embed, "patch_size", None), getattr(embed, "dynamic_img_pad", False)
    if isinstance(patch, tuple) and not pads:
        made = _input_size(model)
        if any(side % own for side, own in zip(made, patch, strict=True)):
            raise ConfigError(f"images of {made[0]}x{made[1]} pixels do not divide into patches of {patch}")


def _warn_of_size(size: tuple[int, int], own: tuple[int, ...], name: str) -> None:
    """own: what the weights have; empty where it is not known."""
    if own and own != size:
        log.warning(
            "images are of %dx%d pixels, where the weights of %s have %dx%d: their positions are resampled",
            *(*size, name, *own),
        )


def _base_model(name: str, from_hub: bool) -> str | None:
    if name.startswith(HUB):
        return name.removeprefix(HUB).partition("@")[0]
    short = name.removeprefix(TIMM)
    return hub_name(short) if from_hub and get_pretrained_cfg(short) is not None else None
