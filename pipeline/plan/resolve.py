"""Resolves a run: checks that its sections agree, and computes the numbers that follow, before a GPU or a
process group is touched."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from pipeline.config.build import all_mistakes
from pipeline.config.schema import RunConfig
from pipeline.errors import ConfigError, counted
from pipeline.plan.checks import mistakes_of
from pipeline.plan.facts import ModelFacts, fed_tasks


@dataclass(frozen=True, kw_only=True)
class ResolvedRun:
    """A run whose sections agree, with the numbers that follow from them."""

    config: RunConfig
    world_size: int
    micro_batches: dict[str, int]
    """Maps each fed task to its micro-batches in a step that holds it, on one rank."""
    global_batch: dict[str, int]
    """Maps each fed task to its samples in a step that holds it, over all ranks."""
    shares: dict[str, float]
    """Maps each fed task to the fraction of steps that hold it: 1 where every step holds all tasks. Empty
    where `num_samples` is needed and not known."""
    total_steps: int | None
    """Optimizer steps; None where `train.epochs` is given and the number of samples is not known."""
    epoch_steps: float | None
    """Optimizer steps until every task has seen (where tasks are drawn: is expected to) each of its samples,
    not rounded; None where the number of samples is not known."""


def resolve(
    config: RunConfig, world_size: int, facts: ModelFacts, num_samples: Mapping[str, int] | None = None
) -> ResolvedRun:
    """The run with its numbers. Raises ConfigError that lists all mistakes of the run as a whole.

    num_samples: training samples of each task, needed to turn `train.epochs` into steps.
    """
    mistakes = mistakes_of(config, world_size, facts)
    _raise([*mistakes, *_check_warmup(config, config.train.steps)])
    micro_batches = {
        name: task.accumulation * config.engine.accumulation for name, task in fed_tasks(config).items()
    }
    global_batch = {
        name: config.tasks[name].data.batch_size * world_size * count for name, count in micro_batches.items()
    }
    shares = _shares(config, global_batch, num_samples)
    epoch = _epoch(global_batch, shares, num_samples)
    total_steps = _total_steps(config, epoch)
    config = _with_warmup_in_steps(config, epoch, total_steps)
    _raise(list(_check_warmup(config, total_steps)))
    if total_steps is not None and config.train.max_steps is not None:
        total_steps = min(total_steps, config.train.max_steps)
    return ResolvedRun(
        config=config,
        world_size=world_size,
        micro_batches=micro_batches,
        global_batch=global_batch,
        shares=shares,
        total_steps=total_steps,
        epoch_steps=epoch,
    )


def _raise(mistakes: list[str]) -> None:
    if mistakes:
        raise ConfigError(all_mistakes("the sections of the config do not agree", mistakes))


def _check_warmup(config: RunConfig, total_steps: int | None) -> Iterator[str]:
    if total_steps is not None and config.optim.warmup_steps >= total_steps:
        yield (
            f"optim.warmup_steps is {config.optim.warmup_steps}, but the run has "
            f"{counted(total_steps, 'step')}; give fewer (or warmup_epochs, warmup_share)"
        )


def _shares(
    config: RunConfig, global_batch: Mapping[str, int], num_samples: Mapping[str, int] | None
) -> dict[str, float]:
    """Share of each task that is fed. Drawn tasks: the config's shares, or else those by which all epochs end
    together, to the power of 1 / temperature."""
    tasks = fed_tasks(config)
    if config.mixing.mode == "all" or len(tasks) == 1:
        return dict.fromkeys(tasks, 1.0)
    given = {name: task.share for name, task in tasks.items() if task.share is not None}
    if len(given) < len(tasks):
        if num_samples is None:
            return {}
        given = {name: num_samples[name] / global_batch[name] for name in tasks}
    powers = {name: share ** (1 / config.mixing.temperature) for name, share in given.items()}
    return {name: power / sum(powers.values()) for name, power in powers.items()}


def _epoch(
    global_batch: Mapping[str, int], shares: Mapping[str, float], num_samples: Mapping[str, int] | None
) -> float | None:
    """Steps, in parts too, until every task has seen (where tasks are drawn: is expected to) each of its
    samples; None where the number of samples is not known."""
    if num_samples is None:
        return None
    steps = (num_samples[name] / (global_batch[name] * share) for name, share in shares.items())
    return max(steps, default=1.0)


def _total_steps(config: RunConfig, epoch: float | None) -> int | None:
    if config.train.steps is not None:
        return config.train.steps
    if epoch is None:
        return None
    assert config.train.epochs is not None, "the schema asks for one of epochs and steps"
    return max(1, math.ceil(config.train.epochs * epoch))


def _with_warmup_in_steps(config: RunConfig, epoch: float | None, total_steps: int | None) -> RunConfig:
    """The run with its warm-up as optim.warmup_steps, once it is known how many these are."""
    optim = config.optim
    if optim.warmup_epochs and epoch is not None:
        steps = round(optim.warmup_epochs * epoch)
    elif optim.warmup_share and total_steps is not None:
        steps = round(optim.warmup_share * total_steps)
    else:
        return config
    return replace(config, optim=replace(optim, warmup_steps=steps, warmup_epochs=0.0, warmup_share=0.0))
