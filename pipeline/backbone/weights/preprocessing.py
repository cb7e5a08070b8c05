"""What a run's data is not told it takes from the backbone: the size of the crop, and how the weights want
their pixels."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from timm.models import get_pretrained_cfg

from pipeline.backbone.weights.sources import named_source
from pipeline.config.build import build_dataclass
from pipeline.config.load import load_config
from pipeline.config.schema import BackboneConfig, DataConfig, Preprocessing, RunConfig
from pipeline.errors import ConfigError
from pipeline.plan.facts import ModelFacts
from pipeline.run_folder import run_of

log = logging.getLogger(__name__)


def complete_data(config: RunConfig, facts: ModelFacts) -> RunConfig:
    """The run with `data.img_size`, `augment.hflip` and the fields of Preprocessing filled in where they are
    None. Explicit values stay.

    Warns of an explicit size that is not the backbone's, whose position embedding is then resampled in every
    forward, and of an explicit mean or std that is not that of the weights. Crop and interpolation may differ
    by a recipe: they are told. Raises ConfigError.
    """
    wanted, whose = preprocessing_of(config.backbone)
    size = facts.grid[0] * facts.patch[0], facts.grid[1] * facts.patch[1]
    tasks = {}
    for name, task in config.tasks.items():
        _compare(f"tasks.{name}.data", task.data, size, wanted, whose)
        tasks[name] = replace(task, data=_filled(task.data, size, wanted))
    return replace(config, tasks=tasks)


def preprocessing_of(config: BackboneConfig) -> tuple[Preprocessing, str | None]:
    """How the backbone's weights want their pixels, and who says so.

    Of `NAME:...` its source says it, of a run its own config, of a file of `dtem export` the card beside it,
    and of timm's weights timm's table. Of another file nothing is known: it is taken for one of the weights
    that timm has under `backbone.name`, and so are weights that are drawn anew; then nobody says so (None).
    """
    if (named := named_source(config.weights or "")) is not None:
        source, where = named
        return _preprocessing(source.preprocessing(where)), config.weights
    for read in (_preprocessing_of_run, _preprocessing_of_export):
        if config.weights and (own := read(Path(config.weights))) is not None:
            return own, config.weights
    known = get_pretrained_cfg(config.name)
    return _preprocessing(
        {} if known is None else known.to_dict()
    ), config.name if config.pretrained and not config.weights else None


def _preprocessing(values: Mapping[str, Any]) -> Preprocessing:
    """ImageNet's where the values lack some, or have another interpolation or way to crop than ours."""
    known: dict[str, Any] = {
        item.name: values[item.name] for item in fields(Preprocessing) if values.get(item.name) is not None
    }
    for name, ours in {"interpolation": ("bilinear", "bicubic"), "crop_mode": ("center", "squash")}.items():
        if known.get(name) not in ours:
            known.pop(name, None)
    for name in known.keys() & {"mean", "std"}:
        known[name] = tuple(known[name])
    return Preprocessing(**known)


def _preprocessing_of_run(folder: Path) -> Preprocessing | None:
    """Of the run whose folder, or checkpoint's folder, this is; None where its tasks do not agree, or there
    is no run."""
    try:
        tasks = load_config(run_of(folder) / "config.json").tasks.values()
    except (ConfigError, OSError):
        return None
    own = {task.data.augment.preprocessing for task in tasks}
    return own.pop() if len(own) == 1 else None


def _preprocessing_of_export(place: Path) -> Preprocessing | None:
    """By the card of an exported file, or of its folder; None where there is no card. Raises ConfigError for
    one that says nonsense."""
    card = place / "model.json" if place.is_dir() else place.with_suffix(".json")
    try:
        given = json.loads(card.read_text(encoding="utf-8"))["input"]
        own = {"mean": given["mean"]} | {
            item.name: given[item.name] for item in fields(Preprocessing) if item.name in given
        }
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return build_dataclass(Preprocessing, own, str(card))


def _filled(data: DataConfig, size: tuple[int, int], wanted: Preprocessing) -> DataConfig:
    usual = asdict(wanted) | {"hflip": 0.0 if data.tokenizer else 0.5}  # a mirrored caption would lie
    lacking = {name: value for name, value in usual.items() if getattr(data.augment, name) is None}
    img_size = data.img_size if data.img_size is not None else size[0] if size[0] == size[1] else size
    return replace(data, img_size=img_size, augment=replace(data.augment, **lacking))


def _compare(
    where: str, data: DataConfig, size: tuple[int, int], wanted: Preprocessing, whose: str | None
) -> None:
    if data.img_size is not None and data.size != size:
        text = (
            "%s.img_size is %s, but the backbone's position embedding is made for %dx%d and is resampled in "
            "every forward; %s"
        )
        log.warning(
            text,
            where,
            data.img_size,
            *size,
            "leave it out, or give backbone.img_size, unless tasks differ in size",
        )
    own = {name: getattr(data.augment, name) for name in asdict(wanted)}
    taken = {name: value for name, value in asdict(wanted).items() if own[name] is None}
    if taken:
        log.info(
            "%s.augment: %s, %s",
            where,
            _told(taken),
            f"as {whose} wants it" if whose else "as timm's weights of that name have it",
        )
    differing = {name: value for name, value in asdict(wanted).items() if own[name] not in (None, value)}
    if whose is None or not differing:
        return
    level = logging.WARNING if differing.keys() & {"mean", "std"} else logging.INFO
    told = _told({name: own[name] for name in differing}), _told(differing)
    log.log(
        level,
        "%s.augment has %s, where %s has %s; leave it out to have the same",
        where,
        told[0],
        whose,
        told[1],
    )


def _told(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
