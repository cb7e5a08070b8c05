"""A run as it would start: its numbers, its model and what is said of its data. No GPU is used, no sample is
read, and no weights are loaded."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tasks as _tasks  # noqa: F401 - fills the registry
from pipeline.backbone.build import model_facts
from pipeline.backbone.weights.preprocessing import complete_data
from pipeline.config.load import from_plain, load_config, to_plain
from pipeline.config.schema import DataConfig, RunConfig
from pipeline.data.samples.protocol import DATASETS
from pipeline.data.shards.held_out import find_split
from pipeline.data.shards.manifest import Manifest
from pipeline.engine.zero_config import zero_config
from pipeline.errors import PipelineError
from pipeline.model import MultiTaskModel, build_model
from pipeline.parts import set_trainable
from pipeline.plan.facts import fed_tasks
from pipeline.plan.resolve import ResolvedRun, resolve
from pipeline.train.ema import check_ema
from pipeline.train.steps import build_procedure


@dataclass
class Held:
    """What is known of the data of a split of a task, as a model's `TaskData`."""

    task: str
    split: str
    num_samples: int = 0
    num_shards: int = 0
    classes: tuple[str, ...] = ()
    gives: type = object
    trouble: str = ""
    """Why it cannot be used, with the way out; empty where it can."""


@dataclass(frozen=True)
class Prepared:
    """A run that could start. The model has the weights that are drawn, not those that the config names."""

    resolved: ResolvedRun
    model: MultiTaskModel
    data: list[Held]
    samples: dict[str, int]
    """Training samples of each fed task; empty where those of one are not known."""
    troubles: list[str] = field(default_factory=list)
    """Why it would not start, besides `data`."""

    @property
    def config(self) -> RunConfig:
        return self.resolved.config


def config_of(place: str, overrides: list[str]) -> RunConfig:
    """The config of a file, of a name such as dtem::debug_cpu.py, or of the folder of a run."""
    own = Path(place) / "config.json"
    return load_config(own if own.is_file() else place, overrides)


def prepare(config: RunConfig, world_size: int = 1) -> Prepared:
    """The run on so many ranks. Raises ConfigError for all that a run refuses before it reads data."""
    facts = model_facts(config.backbone)
    resolve(config, world_size, facts)
    config = complete_data(config, facts)
    check_ema(config)
    build_procedure(config)
    if config.engine.type == "deepspeed":
        zero_config(config)
    data = [held for name, task in config.tasks.items() for held in _held(name, task.data)]
    there = {held.task: held.num_samples for held in data if held.split == "train" and not held.trouble}
    fed = fed_tasks(config)
    samples = {name: there[name] for name in fed} if fed.keys() <= there.keys() else {}
    resolved = resolve(config, world_size, facts, samples or None)
    plain = replace(config, backbone=replace(config.backbone, pretrained=False, weights=None))
    model = build_model(plain)
    set_trainable(model, config.train.mode, [name for name, task in config.tasks.items() if task.frozen])
    return Prepared(resolved, model, data, samples, _misfits(model, data))


def _held(task: str, data: DataConfig) -> list[Held]:
    given = [split for split in ("train", "val", "test") if getattr(data, split) is not None]
    return [_split_of(task, data, split) for split in given]


def _split_of(task: str, data: DataConfig, split: str) -> Held:
    try:
        _, manifest = find_split(task, data, split)
        schema = DATASETS.build(data.schema, data, manifest)
    except (PipelineError, OSError) as err:
        return Held(task, split, trouble=str(err))
    lacks = schema.missing(manifest.schema)
    trouble = f"the samples lack {lacks}, which schema '{data.schema}' needs" if lacks else ""
    shards, classes = len(manifest.shards), tuple(schema.classes)
    return Held(task, split, _used(data, split, manifest), shards, classes, schema.gives, trouble)


def _used(data: DataConfig, split: str, manifest: Manifest) -> int:
    limit = data.overfit if split == "train" else data.limit_val
    return manifest.num_samples if limit is None else min(limit, manifest.num_samples)


def _misfits(model: MultiTaskModel, data: list[Held]) -> list[str]:
    """Heads that do not fit the data that are there."""
    found = []
    for held in data:
        try:
            if not held.trouble:
                model.check_data({held.task: held})
        except PipelineError as err:
            found.append(str(err))
    return list(dict.fromkeys(found))


def defaults_of(config: RunConfig) -> dict[str, Any]:
    """The config as plain data with what it must give, and defaults for the rest."""
    plain = to_plain(config)
    least = {
        "backbone": {"name": plain["backbone"]["name"]},
        "tasks": {
            name: {"type": task["type"], "data": {"schema": task["data"]["schema"]}}
            for name, task in plain["tasks"].items()
        },
        "train": {"steps": 1},
        "output": plain["output"],
    }
    return to_plain(from_plain(least))
