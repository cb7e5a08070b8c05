"""What is checked of a run before its model is built: its configuration, and its data. `dtem train` raises
what is found; `dtem config check` and a dry run tell it."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from pipeline.backbone.build import model_facts
from pipeline.backbone.weights.preprocessing import complete_data
from pipeline.config.schema import RunConfig
from pipeline.data.stream import EvalLoader, TrainStream, build_eval_loader, build_stream, evaluated_split
from pipeline.engine import check_engine, divides_weights
from pipeline.engine.launched import cuda
from pipeline.engine.optimizers import complete_optimizer
from pipeline.errors import ConfigError, SampleError, StorageError
from pipeline.plan.facts import ModelFacts, fed_tasks
from pipeline.plan.resolve import resolve
from pipeline.train.ema import check_ema
from pipeline.train.steps import build_procedure
from pipeline.train.trackers import check_trackers

Refusal = ConfigError | SampleError | StorageError


def completed(config: RunConfig, world_size: int) -> tuple[RunConfig, ModelFacts]:
    """The configuration with what follows from the model and the optimizer. Raises ConfigError for what no
    machine could train."""
    facts = model_facts(config.backbone)
    resolve(config, world_size, facts)
    config = _with_one_pool(complete_optimizer(complete_data(config, facts)))
    check_ema(config)
    build_procedure(config)
    return config, facts


def _with_one_pool(config: RunConfig) -> RunConfig:
    """The configuration, with the workers of all tasks as those of each where it gives such."""
    if (workers := config.train.workers) is None:
        return config
    tasks = {
        name: replace(task, data=replace(task.data, workers=workers)) for name, task in config.tasks.items()
    }
    return replace(config, tasks=tasks)


def refusals(config: RunConfig, world_size: int) -> Iterator[ConfigError]:
    """Why this machine cannot train the configuration: engine, trackers."""
    for check in (partial(check_engine, ranks=world_size), check_trackers, check_decode):
        try:
            check(config)
        except ConfigError as err:
            yield err


def check_decode(config: RunConfig) -> None:
    """Raises ConfigError where a task's images are to be decoded by a GPU, and there is none."""
    asked = [name for name, task in fed_tasks(config).items() if task.data.decode == "cuda"]
    if asked and not cuda():
        raise ConfigError(
            f"tasks.{asked[0]}.data.decode is 'cuda', and this machine has no GPU that torch can use; give "
            "data.decode='worker'"
        )


@dataclass(frozen=True)
class RunData:
    """The data of a run, by task. refused: (task, split) -> why the data cannot be used."""

    streams: dict[str, TrainStream] = field(default_factory=dict)
    loaders: dict[str, EvalLoader] = field(default_factory=dict)
    refused: dict[tuple[str, str], Refusal] = field(default_factory=dict)

    @contextmanager
    def refusing(self, task: str, split: str) -> Iterator[None]:
        """A context that keeps the error of data that cannot be used."""
        try:
            yield
        except (ConfigError, SampleError, StorageError) as err:
            self.refused[task, split] = err


def data_of(config: RunConfig, rank: int, world_size: int) -> RunData:
    """The streams and loaders of all tasks that can be had. No sample is read."""
    found = RunData()
    for name, task in config.tasks.items():
        if not task.frozen:
            accumulation = task.accumulation * config.engine.accumulation
            with found.refusing(name, "train"):
                found.streams[name] = build_stream(
                    name,
                    task.data,
                    seed=config.seed,
                    rank=rank,
                    world_size=world_size,
                    accumulation=accumulation,
                )
        if task.data.val or task.data.overfit:
            split = evaluated_split(task.data)
            with found.refusing(name, "val"):
                found.loaders[name] = build_eval_loader(
                    name, task.data, rank=rank, world_size=world_size, split=split
                )
    return found


def check_shares(config: RunConfig, loaders: Mapping[str, EvalLoader], world_size: int) -> None:
    """Raises ConfigError where a rank would have nothing to evaluate: where weights are divided, a forward is
    a collective."""
    for name, loader in loaders.items() if divides_weights(config) else ():
        size, samples = config.tasks[name].data.eval_batch_size, loader.num_samples
        if math.ceil(samples / size) < world_size:
            raise ConfigError(
                f"tasks.{name}.data.eval_batch_size is {size} and there are {samples} samples to evaluate: "
                f"not a batch for each of the {world_size} ranks that divide the weights; give "
                f"{max(1, samples // world_size)}"
            )
