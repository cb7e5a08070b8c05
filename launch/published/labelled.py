"""A classifier of timm's as a run that was never trained, so that it is scored as runs are."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from launch.saved.device import device_and_precision
from launch.saved.run import SavedRun
from pipeline.backbone.adapters.adapter import Adapter
from pipeline.backbone.build import create_vit, model_facts
from pipeline.backbone.published import TIMM
from pipeline.backbone.rotary import RotaryRule
from pipeline.backbone.timm_heads import label_names
from pipeline.backbone.weights.files import read_state_dict
from pipeline.backbone.weights.plain_models import num_classes_in
from pipeline.backbone.weights.preprocessing import complete_data
from pipeline.config.load import digest
from pipeline.config.schema import (
    BackboneConfig,
    DataConfig,
    EngineConfig,
    MergingConfig,
    RunConfig,
    TaskConfig,
    TrainConfig,
)
from pipeline.data.samples.class_names import are_numbers
from pipeline.data.shards.held_out import find_split
from pipeline.errors import ConfigError
from pipeline.model import build_model

TASK = "classification"


@dataclass(frozen=True)
class PublishedRun(SavedRun):
    """A published model in place of a run. folder: its name."""

    def __str__(self) -> str:
        return str(self.folder)


def published_run(
    name: str,
    source: str,
    *,
    split: str,
    adapter: Adapter | None = None,
    weights: str | None = None,
    pretrained: bool = True,
    img_size: int | None = None,
) -> PublishedRun:
    """timm's classifier of this name with one task, on shards with classes, or on an ImageFolder tree. Its
    policy and reduction are those of the adapter; without one tokens do not merge.

    The shards' labels are matched to the model's by their names, or by their numbers where the names only
    number them. Raises ConfigError, CheckpointError and SampleError.
    """
    if not name.startswith(TIMM):
        raise ConfigError(f"{name} cannot be scored on labels; give timm:NAME, with --weights where need be")
    backbone = BackboneConfig(
        name=name.removeprefix(TIMM),
        pretrained=pretrained and weights is None,
        weights=weights,
        img_size=img_size,
    )
    if adapter is not None:
        attends = adapter.config.merging.proportional_attention
        backbone = replace(backbone, proportional_attention=attends)  # pyright: ignore[reportArgumentType]
    names, count = _classes_of(backbone)
    data, precision = _data(source, split), device_and_precision(None, None)[1]
    manifest = find_split(TASK, data, split)[1]
    if "cls" not in manifest.schema:
        raise ConfigError(
            f"{source} has no labels (.cls); give an ImageFolder tree, or shards with classes, and "
            "`dtem sweep` measures agreement with the unmerged model without"
        )
    config = RunConfig(
        backbone=backbone,
        tasks={TASK: TaskConfig(type="classification", head={"num_classes": count}, data=data)},
        train=TrainConfig(steps=1),
        output=name,
        merging=MergingConfig() if adapter is None else _merging(adapter),
        engine=EngineConfig(type="local", precision=precision),  # pyright: ignore[reportArgumentType]
    )
    config = complete_data(config, model_facts(backbone))
    with torch.random.fork_rng(devices=[]):
        model = build_model(config)
    if adapter is not None:
        adapter.apply_to(model.backbone)
    facts = {
        "config": {},
        "digest": digest(config),
        "step": 0,
        "commit": None,
        "versions": {},
        "classes": {TASK: _named(names, manifest.classes)},
    }
    return PublishedRun(Path(name), config, dict(model.state_dict()), False, facts)


def _classes_of(backbone: BackboneConfig) -> tuple[tuple[str, ...], int]:
    """Names, where they are known, and number of the classes of timm's model with these weights. Raises
    ConfigError where it has no classifier."""
    with torch.device("meta"):
        model = create_vit(backbone.name, num_classes=None, img_size=backbone.img_size)
    own = model.num_classes
    count = own if backbone.weights is None else num_classes_in(read_state_dict(backbone.weights), model)
    if not count:
        raise ConfigError(
            f"{TIMM}{backbone.name} has no classifier, so that labels say nothing of it; `dtem sweep` "
            "measures its agreement with the unmerged model on pictures without labels"
        )
    return label_names(model) if count == own else (), count


def names_classes_of(name: str, weights: str | None, classes: Sequence[str]) -> bool:
    """Whether a set's classes are some of those of timm's classifier, or as many where either have no
    names."""
    backbone = BackboneConfig(name=name.removeprefix(TIMM), weights=weights)
    with suppress(ConfigError):  # of a model without a classifier
        known, count = _classes_of(backbone)
        if not known or are_numbers(tuple(classes)):
            return len(classes) == count
        return set(classes) <= set(_named(known, tuple(classes)))
    return False


def _data(source: str, split: str) -> DataConfig:
    train = source if split == "train" else None
    return DataConfig(
        schema="classification", train=train, val=source, workers=workers_here(), allow_overlap=True
    )


def workers_here() -> int:
    """Worker processes of a loader on this machine."""
    return min(4, len(os.sched_getaffinity(0)) - 1)


def _merging(adapter: Adapter) -> MergingConfig:
    own = adapter.config.merging
    rule = own.rotary_rule or RotaryRule()
    return MergingConfig(
        policy=own.policy,
        reduction=own.reduction or 0,
        rotary=rule.name,  # pyright: ignore[reportArgumentType]
        rotary_bias=rule.bias,
        options=own.options,
    )


def _named(known: tuple[str, ...], stored: tuple[str, ...]) -> list[str]:
    """The model's label names as the shards have them, which may add words: `n01440764 tench`."""
    longer = {name.split(" ", 1)[0]: name for name in stored}
    return [longer.get(name, name) for name in known]
