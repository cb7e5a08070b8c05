"""Zero-shot classification by a captioner that was trained to compare images with captions."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.config.schema import DataConfig, RunConfig
from pipeline.data.manifest import load_manifest
from pipeline.errors import ConfigError
from pipeline.model import MultiTaskModel
from tasks.captioning import CaptioningTask
from tasks.retrieval import ZeroShotTask

NAME = "zero_shot"


def add_zero_shot(
    model: MultiTaskModel, config: RunConfig, shards: str, templates: Sequence[str], names: str | None
) -> tuple[str, DataConfig]:
    """Adds a task to the model, on the model's device: its name, and its data, which are seen as the captioner's.

    shards: of images with classes. templates: captions with {} for the name of a class. names: a JSON file with the list of names, for
    shards whose classes have none that a caption can use. Raises ConfigError.
    """
    captioners = [name for name, task in model.tasks.items() if isinstance(task, CaptioningTask)]
    if not captioners:
        raise ConfigError(f"--zero-shot needs a run with a task of type captioning; this one has {', '.join(model.tasks)}")
    classes = load_manifest(shards, "val").classes if names is None else _listed(names)
    model.add_task(NAME, ZeroShotTask(model.tasks[captioners[0]], classes, templates), like=captioners[0])
    return NAME, replace(config.tasks[captioners[0]].data, schema="classification", train=None, val=shards, test=shards, tokenizer=None)


def _listed(path: str) -> list[str]:
    try:
        names = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ConfigError(f"--class-names {path} cannot be read: {err}") from err
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"--class-names {path} is not a JSON list of names")
    return names
