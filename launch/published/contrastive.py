"""A CLIP of open_clip's as a run that was never trained, with a zero-shot task."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from launch.published.labelled import PublishedRun, workers_here
from launch.published.merged import check_policy
from launch.saved.device import device_and_precision
from launch.saved.policy_names import UNTRAINED
from launch.saved.zero_shot import NAME, named_classes
from pipeline.backbone.adapters.adapter import Adapter
from pipeline.backbone.adapters.public import load_adapter
from pipeline.backbone.build import build_backbone
from pipeline.backbone.weights.load import load_weights
from pipeline.config.load import digest
from pipeline.config.schema import (
    AugmentConfig,
    BackboneConfig,
    DataConfig,
    EngineConfig,
    MergingConfig,
    RunConfig,
    TaskConfig,
    TrainConfig,
)
from pipeline.errors import ConfigError
from pipeline.merging.policies import POLICIES
from pipeline.model import MultiTaskModel
from pipeline.objectives import OBJECTIVES
from tasks.captions.retrieval import ZeroShotTask

OPEN_CLIP = "open_clip:"
REFUSED = {
    "data": None,
    "weights": None,
    "no_pretrained": False,
    "img_size": None,
    "tasks": None,
    "cfg_options": [],
    "checkpoint": "best",
}
"""Arguments of `dtem evaluate` that say nothing of such a model -> their defaults."""


def is_clip(name: str) -> bool:
    """Whether a text names a model of open_clip, by `open_clip:`."""
    return name.startswith(OPEN_CLIP)


def zero_shot_run(args: argparse.Namespace) -> tuple[PublishedRun, MultiTaskModel]:
    """What `dtem evaluate open_clip:MODEL@TAG_OR_FILE --zero-shot SHARDS` scores. Raises ConfigError,
    CheckpointError and SampleError."""
    if args.zero_shot is None:
        raise ConfigError(
            f"{args.run} classifies by captions of the classes: give --zero-shot, with the images"
        )
    for name, usual in REFUSED.items():
        if getattr(args, name) != usual:
            flag = {"tasks": "task", "cfg_options": "set"}.get(name, name).replace("_", "-")
            raise ConfigError(f"--{flag} says nothing of {args.run}; leave it out")
    return clip_run(
        args.run,
        args.zero_shot,
        split=args.split,
        policy=args.policy,
        adapter=None if args.adapter is None else load_adapter(args.adapter),
        templates=args.templates,
        names=args.class_names,
    )


def clip_run(
    name: str,
    shards: str,
    *,
    split: str = "val",
    policy: str | None = None,
    adapter: Adapter | None = None,
    templates: Sequence[str] | None = None,
    names: str | None = None,
) -> tuple[PublishedRun, MultiTaskModel]:
    """A CLIP with one task, `zero_shot`, on shards with classes, preprocessed as open_clip does.

    name: `open_clip:MODEL@TAG` or `open_clip:MODEL@FILE`. policy: None takes the adapter's, else `none`.
    templates, names: see `add_zero_shot`. Its reduction is the adapter's, else 0. Raises as `zero_shot_run`.
    """
    # imported late, as it takes seconds
    from tasks.open_clip_bridge.clip import Clip, image_tower
    from tasks.open_clip_bridge.pretrained import read_preprocessing, read_pretrained

    where = name.removeprefix(OPEN_CLIP)
    weights, title = read_pretrained(where), where.partition("@")[0]
    tower, clip = image_tower(title, weights.config), Clip(title, weights.config, weights)
    merging = _merging(policy, adapter)
    attends = "always" if adapter is None else adapter.config.merging.proportional_attention
    data = _data(shards, split, tower.img_size, read_preprocessing(where))
    classes, templates = named_classes(data, split, templates, names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = build_backbone(
            tower.name,
            policy=merging.policy,
            reduction=merging.reduction,
            img_size=tower.img_size,
            timm_options=tower.options,
            proportional_attention=attends,
            **merging.options,
        )
    load_weights(backbone, weights)
    if adapter is not None and POLICIES.build(merging.policy).embeds:
        adapter.apply_to(backbone)
    config = RunConfig(
        backbone=BackboneConfig(name=tower.name, img_size=tower.img_size, options=tower.options),
        tasks={NAME: TaskConfig(type=NAME, data=data)},
        train=TrainConfig(steps=1),
        output=name,
        merging=merging,
        engine=EngineConfig(type="local", precision=device_and_precision(None, None)[1]),  # pyright: ignore[reportArgumentType]
    )
    task = ZeroShotTask(clip.eval(), classes, templates)
    model = MultiTaskModel(backbone, {NAME: task}, OBJECTIVES.build("supervised")).eval()
    facts = {"config": {}, "digest": digest(config), "step": 0, "commit": None, "versions": {}}
    return PublishedRun(Path(name), config, {}, False, facts), model


def _data(shards: str, split: str, img_size: int, preprocessing: Mapping[str, Any]) -> DataConfig:
    return DataConfig(
        schema="classification",
        img_size=img_size,
        workers=workers_here(),
        augment=AugmentConfig(**preprocessing),
        allow_overlap=True,
        train=shards if split == "train" else None,
        val=shards,
        test=shards,
    )


def _merging(policy: str | None, adapter: Adapter | None) -> MergingConfig:
    own = None if adapter is None else adapter.config.merging
    policy = policy or (own.policy if own else "none")
    check_policy(policy, own is not None)
    name = policy.removesuffix(UNTRAINED)
    if own is None or own.policy != name:
        return MergingConfig(policy=name)
    return MergingConfig(policy=name, reduction=own.reduction or 0, options=own.options)
