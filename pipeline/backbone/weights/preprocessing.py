"""Defaults of a run's data from its backbone: the size of the crop, and the preprocessing of the weights."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from timm.models import get_pretrained_cfg

from pipeline.backbone.weights.folders import FILES, pixels_in
from pipeline.backbone.weights.sources import named_source
from pipeline.config.build import build_dataclass
from pipeline.config.load import load_config
from pipeline.config.schema import BackboneConfig, DataConfig, Preprocessing, RunConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.plan.facts import ModelFacts
from pipeline.run_folder import run_of

log = logging.getLogger(__name__)


def complete_data(config: RunConfig, facts: ModelFacts) -> RunConfig:
    """The run with `data.img_size`, `augment.hflip`, the fields of Preprocessing, and of clips `data.frames`
    filled in where they are None. Explicit values stay.

    Warns of an explicit size that is not the backbone's, whose position embedding is then resampled in every
    forward pass, and of an explicit mean or std other than the weights'. Crop and interpolation may differ by
    recipe: their difference is logged as information. Raises ConfigError.
    """
    wanted, whose = preprocessing_of(config.backbone)
    size = facts.grid[-2] * facts.patch[0], facts.grid[-1] * facts.patch[1]
    tasks = {}
    for name, task in config.tasks.items():
        _compare(f"tasks.{name}.data", task.data, size if facts.resamples else None, wanted, whose)
        data = _filled(task.data, size, wanted)
        if data.frames is None and config.backbone.frames > 1:
            data = replace(data, frames=config.backbone.frames)
        tasks[name] = replace(task, data=data)
    return replace(config, tasks=tasks)


def preprocessing_of(config: BackboneConfig) -> tuple[Preprocessing, str | None]:
    """Preprocessing of the backbone's weights, and the name of who states it.

    It comes from the source for `NAME:...`, from the config for a run, from the card beside it for a file of
    `dtem export`, from preprocessor_config.json or config.json for a folder of transformers or timm, and
    from timm's table for timm's weights. Other files, and weights that are drawn anew, get what timm's table
    has for `backbone.name`, with the name None; those of clips get ImageNet's, which VideoMAE has.
    """
    if (named := named_source(config.weights or "")) is not None:
        source, where = named
        return preprocessing_in(source.preprocessing(where)), config.weights
    for read in (_preprocessing_of_run, _preprocessing_of_export, _preprocessing_of_folder):
        if config.weights and (own := read(Path(config.weights))) is not None:
            return own, config.weights
    if config.frames > 1 and not config.pretrained:
        return preprocessing_in({}), "VideoMAE" if config.weights else None
    known = get_pretrained_cfg(config.name)
    whose = config.name if config.pretrained and not config.weights else None
    return preprocessing_in({} if known is None else known.to_dict()), whose


def preprocessing_in(values: Mapping[str, Any]) -> Preprocessing:
    """Preprocessing of these values, which are of the right types."""
    known = _known(values)
    for name in known.keys() & {"mean", "std"}:
        known[name] = tuple(known[name])
    return Preprocessing(**known)


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that are fields of Preprocessing. ImageNet's stand in for missing ones, and for
    unknown ways to crop or interpolate."""
    known: dict[str, Any] = {
        item.name: values[item.name] for item in fields(Preprocessing) if values.get(item.name) is not None
    }
    for name, ours in {"interpolation": ("bilinear", "bicubic"), "crop_mode": ("center", "squash")}.items():
        if known.get(name) not in ours:
            known.pop(name, None)
    return known


def _preprocessing_of_run(folder: Path) -> Preprocessing | None:
    """Preprocessing of the run of this folder, its own or a checkpoint's; None where its tasks differ, or
    there is no run."""
    try:
        tasks = load_config(run_of(folder) / "config.json").tasks.values()
    except (ConfigError, OSError):
        return None
    own = {task.data.augment.preprocessing for task in tasks}
    return own.pop() if len(own) == 1 else None


def _preprocessing_of_export(place: Path) -> Preprocessing | None:
    """Preprocessing in the card of an exported file or folder; None where there is no card. Raises
    ConfigError for wrong values."""
    card = place / "model.json" if place.is_dir() else place.with_suffix(".json")
    try:
        given = json.loads(card.read_text(encoding="utf-8"))["input"]
        own = {"mean": given["mean"]} | {
            item.name: given[item.name] for item in fields(Preprocessing) if item.name in given
        }
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return build_dataclass(Preprocessing, own, str(card))


def _preprocessing_of_folder(place: Path) -> Preprocessing | None:
    """Preprocessing by the files of transformers or timm in a folder, or beside the file of weights in it;
    None where there are none. Raises ConfigError for wrong values."""
    folder = place.parent if place.name in FILES else place
    try:
        found = pixels_in(folder)
    except CheckpointError as err:
        raise ConfigError(str(err)) from err
    if found is None:
        return None
    path, values = found
    return build_dataclass(Preprocessing, _known(values), str(path))


def _filled(data: DataConfig, size: tuple[int, int], wanted: Preprocessing) -> DataConfig:
    # captions can name left and right, so their images are not mirrored
    usual = asdict(wanted) | {"hflip": 0.0 if data.tokenizer else 0.5}
    lacking = {name: value for name, value in usual.items() if getattr(data.augment, name) is None}
    img_size = data.img_size if data.img_size is not None else size[0] if size[0] == size[1] else size
    return replace(data, img_size=img_size, augment=replace(data.augment, **lacking))


def _compare(
    where: str, data: DataConfig, size: tuple[int, int] | None, wanted: Preprocessing, whose: str | None
) -> None:
    if size is not None and data.img_size is not None and data.size != size:
        log.warning(
            "%s.img_size is %s, but the backbone's position embedding is made for %dx%d and is resampled in "
            "every forward; leave it out, or give backbone.img_size, unless tasks differ in size",
            *(where, data.img_size, *size),
        )
    own = {name: getattr(data.augment, name) for name in asdict(wanted)}
    taken = {name: value for name, value in asdict(wanted).items() if own[name] is None}
    if taken:
        as_whom = f"as {whose} wants it" if whose else "as is usual with that name"
        log.info("%s.augment: %s, %s", where, _listed(taken), as_whom)
    differing = {name: value for name, value in asdict(wanted).items() if own[name] not in (None, value)}
    if whose is None or not differing:
        return
    level = logging.WARNING if differing.keys() & {"mean", "std"} else logging.INFO
    given = _listed({name: own[name] for name in differing})
    text = "%s.augment has %s, where %s has %s; leave it out to have the same"
    log.log(level, text, where, given, whose, _listed(differing))


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
