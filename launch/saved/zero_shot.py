"""Zero-shot classification by a captioning task with a contrastive part."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.config.schema import DataConfig, RunConfig
from pipeline.data.shards.held_out import find_split
from pipeline.errors import ConfigError
from pipeline.model import MultiTaskModel
from tasks.captioning import CaptioningTask
from tasks.captions.retrieval import ZeroShotTask

NAME = "zero_shot"
TEMPLATES = ("a photo of a {}.",)
_SYNSET = re.compile(r"(n\d{8})\b\s*")
IMAGENET = "791ce0333040dd249d13133f90d28ef0263ffc01e5de0afd85b3e32048d7d456"
"""sha256 of the numbers of ImageNet's 1,000 synsets, in order, joined by spaces."""


def add_zero_shot(
    model: MultiTaskModel,
    config: RunConfig,
    shards: str,
    split: str,
    templates: Sequence[str] | None,
    names: str | None,
) -> tuple[str, DataConfig]:
    """Adds a zero-shot task to the model, on the model's device. Returns its name, and its data, with the
    captioning task's preprocessing.

    shards: of images with classes; those of the split are used. templates: captions with {} for the name of a
    class. names: a JSON file with a list of names, for shards whose class names do not fit into captions.
    None: see `prompts`. Raises ConfigError and SampleError.
    """
    captioners = {name: task for name, task in model.tasks.items() if isinstance(task, CaptioningTask)}
    if not captioners:
        raise ConfigError(
            f"--zero-shot needs a run with a task of type captioning; this one has {', '.join(model.tasks)}"
        )
    name, captioner = next(iter(captioners.items()))
    places = dict(train=shards if split == "train" else None, val=shards, test=shards)
    data = replace(config.tasks[name].data, schema="classification", tokenizer=None, **places)
    classes, templates = named_classes(data, split, templates, names)
    model.add_task(NAME, ZeroShotTask(captioner, classes, templates), like=name)
    return NAME, data


def named_classes(
    data: DataConfig, split: str, templates: Sequence[str] | None, names: str | None
) -> tuple[Sequence[str], Sequence[str]]:
    """Names of the classes of a split for captions, and templates; see `add_zero_shot`."""
    classes, usual = (
        (_listed(names), TEMPLATES)
        if names is not None
        else prompts(find_split(NAME, data, split)[1].classes)
    )
    return classes, templates or usual


def prompts(classes: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Names for captions, and templates, of classes as shards name them. Raises ConfigError for a class
    without a name.

    ImageNet's 1,000 synsets get the names and templates with which CLIP was measured. Other synsets lose
    their number and all names but the first: "n01440764 tench, Tinca tinca" becomes "tench".
    """
    numbers = [match[1] for name in classes if (match := _SYNSET.match(name))]
    if len(numbers) == len(classes) and hashlib.sha256(" ".join(numbers).encode()).hexdigest() == IMAGENET:
        from tasks.open_clip_bridge import imagenet

        return imagenet.CLASS_NAMES, imagenet.TEMPLATES
    names = [
        _SYNSET.sub("", name, count=1).split(",")[0].strip() if _SYNSET.match(name) else name
        for name in classes
    ]
    if "" in names:
        raise ConfigError(
            f"class '{classes[names.index('')]}' has no name that a caption can use; give a list by "
            "--class-names"
        )
    return names, TEMPLATES


def _listed(path: str) -> list[str]:
    try:
        names = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ConfigError(f"--class-names {path} cannot be read: {err}") from err
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"--class-names {path} is not a JSON list of names, one or more")
    return names
