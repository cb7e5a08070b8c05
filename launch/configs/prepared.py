"""A run as it would start: its numbers, its model, what is said of its data, and what training would refuse.
No GPU is used, no sample is read, and no weights are loaded."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import tasks as _tasks  # noqa: F401 - fills the registry
from pipeline.config.load import from_plain, load_config, to_plain
from pipeline.config.schema import RunConfig
from pipeline.data.stream import EvalLoader, TrainStream, build_eval_loader
from pipeline.errors import ConfigError
from pipeline.model import MultiTaskModel, build_model
from pipeline.parts import set_trainable
from pipeline.plan.facts import fed_tasks
from pipeline.plan.resolve import ResolvedRun, resolve
from pipeline.train.checked import RunData, check_shares, completed, data_of, refusals


@dataclass(frozen=True)
class Held:
    """What is known of the data of a task. split: `train`, `val` or `test`; num_samples: of those that are
    used."""

    task: str
    split: str
    num_samples: int = 0
    num_shards: int = 0
    classes: tuple[str, ...] = ()
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

    @property
    def refusals(self) -> list[str]:
        """All for which `dtem train` would refuse it here."""
        return [held.trouble for held in self.data if held.trouble] + self.troubles


def config_of(place: str, overrides: list[str]) -> RunConfig:
    """The config of a file, of a name such as dtem::debug_cpu.py, or of the folder of a run."""
    own = Path(place) / "config.json"
    return load_config(own if own.is_file() else place, overrides)


def prepare(config: RunConfig, world_size: int = 1) -> Prepared:
    """The run on so many ranks. Raises ConfigError for what no machine could train."""
    config, facts = completed(config, world_size)
    found = data_of(config, 0, world_size)
    fed = fed_tasks(config)
    samples = {name: stream.num_samples for name, stream in found.streams.items()}
    samples = samples if samples.keys() == fed.keys() else {}
    resolved = resolve(config, world_size, facts, samples or None)
    plain = replace(config, backbone=replace(config.backbone, pretrained=False, weights=None))
    model = build_model(plain)
    set_trainable(model, config.train.mode, [name for name, task in config.tasks.items() if task.frozen])
    troubles = [*map(str, refusals(config, world_size)), *_misfits(model, found, config, world_size)]
    return Prepared(resolved, model, list(_held(config, found)), samples, list(dict.fromkeys(troubles)))


def _held(config: RunConfig, found: RunData) -> Iterator[Held]:
    """The data of each task, split by split; also `data.test`, of which training knows nothing."""
    for name, task in config.tasks.items():
        own: dict[str, TrainStream | EvalLoader] = {}
        if name in found.streams:
            own["train"] = found.streams[name]
        if name in found.loaders:
            own["val"] = found.loaders[name]
        if task.data.test is not None:
            with found.refusing(name, "test"):
                own["test"] = build_eval_loader(name, task.data, rank=0, world_size=1, split="test")
        for split in ("train", "val", "test"):
            if split in own:
                data = own[split]
                yield Held(name, split, data.num_samples, data.num_shards, tuple(data.classes))
            elif (name, split) in found.refused:
                yield Held(name, split, trouble=str(found.refused[name, split]))


def _misfits(model: MultiTaskModel, found: RunData, config: RunConfig, world_size: int) -> Iterator[str]:
    """Heads that do not fit the data that are there, and data that are too few for the ranks."""
    checks: list[Callable[[], None]] = [
        partial(model.check_data, data) for data in (found.streams, found.loaders)
    ]
    for check in (*checks, partial(check_shares, config, found.loaders, world_size)):
        try:
            check()
        except ConfigError as err:
            yield str(err)


def completed_config(place: str, overrides: list[str]) -> RunConfig:
    """As `config_of`, with what follows from the model and the optimizer, as the config.json of a run has
    it."""
    return completed(config_of(place, overrides), 1)[0]


def defaults_of(config: RunConfig) -> dict[str, Any]:
    """The defaults of the config's sections and tasks as plain data, without what each config has to give."""
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
    defaults = to_plain(from_plain(least))
    del defaults["backbone"]["name"], defaults["output"]
    defaults["train"]["steps"] = None
    for task in defaults["tasks"].values():
        del task["type"], task["data"]["schema"]
    return defaults
