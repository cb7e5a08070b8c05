"""What takes two sections, the model or the number of ranks to see: checked before a GPU or a process group
is touched.

This file stands above `pipeline.merging`, whose rules it asks; the rest of `pipeline.config` stands below
everything.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from pipeline.config.build import all_mistakes
from pipeline.config.schema import ReductionConfig, RunConfig, TaskConfig, height_width
from pipeline.errors import ConfigError
from pipeline.merging.policies import POLICIES
from pipeline.merging.schedule import check_schedule
from pipeline.parts import METRIC, TRAINED


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the checks need to know of the backbone, without building it at full size."""

    patch: tuple[int, int]
    """Height and width of a patch in pixels."""
    depth: int
    num_prefix: int
    grid: tuple[int, int]
    """Patches (rows, columns) that the position embedding is made for."""


@dataclass(frozen=True, kw_only=True)
class ResolvedRun:
    """A run whose sections agree, with the numbers that follow from them."""

    config: RunConfig
    world_size: int
    micro_batches: dict[str, int]
    """Of each fed task, in a step that holds it, on one rank."""
    global_batch: dict[str, int]
    """Samples of each fed task in a step that holds it, over all ranks."""
    shares: dict[str, float]
    """Of the steps, those that hold the task: 1 where every step holds all. Empty where `num_samples` is
    needed and not known."""
    total_steps: int | None
    """Optimizer steps; None where `train.epochs` is given and the number of samples is not known."""


def resolve(
    config: RunConfig, world_size: int, facts: ModelFacts, num_samples: Mapping[str, int] | None = None
) -> ResolvedRun:
    """Checks the run as a whole; ConfigError lists all mistakes at once.

    num_samples: training samples of each task, needed to turn `train.epochs` into steps.
    """
    mistakes: list[str] = []
    for check in (
        _check_images,
        _check_merging,
        _check_mode,
        _check_tasks,
        _check_mixture,
        _check_data,
        _check_engine,
    ):
        mistakes.extend(check(config, world_size, facts))
    mistakes.extend(_check_warmup(config, config.train.steps))
    _raise(mistakes)
    micro_batches = {
        name: task.accumulation * config.engine.accumulation for name, task in fed_tasks(config).items()
    }
    global_batch = {
        name: config.tasks[name].data.batch_size * world_size * count for name, count in micro_batches.items()
    }
    shares = _shares(config, global_batch, num_samples)
    total_steps = _total_steps(config, global_batch, shares, num_samples)
    _raise(list(_check_warmup(config, total_steps)))
    return ResolvedRun(
        config=config,
        world_size=world_size,
        micro_batches=micro_batches,
        global_batch=global_batch,
        shares=shares,
        total_steps=total_steps,
    )


def _raise(mistakes: list[str]) -> None:
    if mistakes:
        raise ConfigError(all_mistakes("the sections of the config do not agree", mistakes))


def _check_warmup(config: RunConfig, total_steps: int | None) -> Iterator[str]:
    if total_steps is not None and config.optim.warmup_steps >= total_steps:
        yield (
            f"optim.warmup_steps is {config.optim.warmup_steps}, but the run has {total_steps} steps; "
            "give fewer"
        )


def fed_tasks(config: RunConfig) -> dict[str, TaskConfig]:
    """Those that training feeds: all that are not frozen."""
    return {name: task for name, task in config.tasks.items() if not task.frozen}


def reduction_of(config: RunConfig, task: str) -> ReductionConfig:
    """The task's own, or the run's."""
    return config.tasks[task].merging or config.merging


def range_of(config: RunConfig, task: str) -> tuple[str, tuple[int, int] | None]:
    """The range that a step's reduction for the task is drawn from, and where it is given."""
    own = config.tasks[task].merging
    if own is not None:
        return f"tasks.{task}.merging.reduction_range", own.reduction_range
    return "train.reduction_range", config.train.reduction_range


def near_multiples(pixels: int, patch: int) -> list[int]:
    """The multiples of `patch` next to `pixels`, the nearer one first."""
    low = pixels // patch * patch
    return sorted((size for size in (low, low + patch) if size > 0), key=lambda size: abs(size - pixels))


def _shares(
    config: RunConfig, global_batch: Mapping[str, int], num_samples: Mapping[str, int] | None
) -> dict[str, float]:
    """Of each fed task. Drawn tasks: what the config says, or else so that all epochs end together, to the
    power of 1 / temperature."""
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


def _total_steps(
    config: RunConfig,
    global_batch: Mapping[str, int],
    shares: Mapping[str, float],
    num_samples: Mapping[str, int] | None,
) -> int | None:
    """An epoch is as many steps as it takes until every task has seen (where tasks are drawn: is expected to)
    each of its samples."""
    if config.train.steps is not None:
        return config.train.steps
    if num_samples is None:
        return None
    assert config.train.epochs is not None, "the schema asks for one of epochs and steps"
    epoch = max(
        (num_samples[name] / (global_batch[name] * share) for name, share in shares.items()), default=1.0
    )
    return max(1, math.ceil(config.train.epochs * epoch))


def _check_images(config: RunConfig, world_size: int, facts: ModelFacts) -> Iterator[str]:
    given = {f"tasks.{name}.data.img_size": task.data.img_size for name, task in config.tasks.items()}
    given["backbone.img_size"] = config.backbone.img_size
    for where, size in ((where, size) for where, size in given.items() if size is not None):
        for pixels, side in sorted(set(zip(height_width(size), facts.patch, strict=True))):
            if pixels <= 0 or pixels % side:
                near = " or ".join(str(multiple) for multiple in near_multiples(max(pixels, 1), side))
                of = "" if pixels == size else f" ({pixels})"
                yield f"{where} is {size}, which does not divide by patch {side}{of}; nearest: {near}"


def _check_merging(config: RunConfig, world_size: int, facts: ModelFacts) -> Iterator[str]:
    merging, own = (
        config.merging,
        [f"tasks.{name}.merging" for name, task in config.tasks.items() if task.merging is not None],
    )
    if merging.policy == "none":
        if (
            own
            or merging.reduction != 0
            or merging.target_macs
            or merging.target_gmacs
            or config.train.reduction_range is not None
        ):
            settings = [
                "merging.reduction",
                "merging.target_macs",
                "merging.target_gmacs",
                "train.reduction_range",
                *own,
            ]
            yield (
                f"merging.policy is 'none', which removes no tokens; leave {', '.join(settings[:-1])} "
                f"and {settings[-1]} out, "
                f"or give a policy ({', '.join(POLICIES.names())})"
            )
        return
    for name, task in config.tasks.items():
        patches = _num_patches(task, facts)
        num_tokens = patches + facts.num_prefix
        reduction = reduction_of(config, name).reduction
        yield from _complaint(
            f"tasks.{name}", check_schedule, reduction, facts.depth, num_tokens, facts.num_prefix
        )
        where, span = range_of(config, name)
        if span is not None and span[1] > patches // 2:
            yield (
                f"{where} goes to {span[1]}, but a block can merge at most {patches // 2} of the "
                f"{patches} patches of task '{name}'"
            )


def _check_mode(config: RunConfig, world_size: int, facts: ModelFacts) -> Iterator[str]:
    policy, mode = config.merging.policy, config.train.mode
    if config.objective.type == "distill" and policy == "none":
        yield (
            "objective.type is 'distill' and merging.policy is 'none': teacher and student would be "
            "the same; give a policy"
        )
    if config.objective.type == "merge_cost" and mode not in ("modular", "end_to_end"):
        yield (
            "objective.type is 'merge_cost', which teaches the embeddings alone; train.mode is "
            f"'{mode}', give 'modular' or 'end_to_end'"
        )
    yield from _complaint("merging", POLICIES.build, policy, **config.merging.options)
    if policy not in POLICIES.names() or METRIC not in TRAINED[mode]:
        return
    learned = [name for name in POLICIES.names() if POLICIES.build(name).learned]
    if policy not in learned:
        yield (
            f"train.mode is '{mode}', but policy '{policy}' has no metric embedding to learn; give "
            "train.mode='backbone', "
            f"or a policy that has one ({', '.join(learned)})"
        )
    elif (
        mode == "modular"
        and config.objective.type != "merge_cost"
        and not any(_merges(config, name) for name in fed_tasks(config))
    ):
        yield (
            "train.mode is 'modular', but nothing merges, so nothing would reach the embeddings; "
            "give merging.reduction, or target_macs"
        )


def _merges(config: RunConfig, task: str) -> bool:
    own = reduction_of(config, task)
    return bool(own.reduction or own.target_macs or own.target_gmacs or range_of(config, task)[1])


def _check_tasks(config: RunConfig, world_size: int, facts: ModelFacts) -> Iterator[str]:
    for name, task in config.tasks.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            yield f"the task name '{name}' is not an identifier; it becomes part of parameter names"
        elif any(hasattr(kind, name) for kind in (nn.ModuleDict(), nn.ParameterDict())):
            yield f"the task name '{name}' is one that torch keeps for itself; give another"
        if task.weight <= 0:
            yield f"tasks.{name}.weight is {task.weight}; give a number above 0, or leave the task out"
        if task.share is not None and task.share <= 0:
            yield f"tasks.{name}.share is {task.share}; give a number above 0, or leave the task out"
        if task.accumulation < 1:
            yield f"tasks.{name}.accumulation is {task.accumulation}; give 1 or more"
    if not fed_tasks(config):
        yield (
            f"tasks.{', tasks.'.join(config.tasks)}: all are frozen, so there is nothing to train; "
            "take frozen off one of them"
        )
    best = config.train.best
    if best is not None and best not in config.tasks:
        yield f"train.best is '{best}', which is not a task; give one of {', '.join(config.tasks)}, or None"
    elif best is not None and not config.tasks[best].data.val:
        yield (
            f"train.best is '{best}', but tasks.{best}.data.val is not given; name the shards to evaluate on"
        )


def _check_mixture(config: RunConfig, world_size: int, facts: ModelFacts) -> Iterator[str]:
    fed = fed_tasks(config)
    without = [name for name, task in fed.items() if task.share is None]
    if without and len(without) < len(fed):
        yield (
            f"tasks.{without[0]}.share is not given, but that of another task is; give all tasks a "
            "share, or none"
        )
    if len(without) < len(fed) and config.mixing.mode == "all":
        yield (
            "tasks.NAME.share is how often a task is drawn, but mixing.mode is 'all'; leave it out, "
            "or give mixing.mode='sampled'"
        )
    if config.balancing.type != "gradient_norm" or len(fed) < 2:
        return
    if config.mixing.mode == "sampled":
        yield (
            "balancing.type is 'gradient_norm', which compares the tasks' gradients of one step; "
            "give mixing.mode='all'"
        )
    if config.balancing.every == 0:
        yield (
            "balancing.type is 'gradient_norm' and balancing.every is 0: nothing would be measured; "
            "give a number of steps"
        )
    mode, embedding = config.train.mode, config.merging.embedding
    if mode == "heads" or (mode == "modular" and embedding == "per_task"):
        yield (
            f"balancing.type is 'gradient_norm', but in train.mode='{mode}' the tasks share nothing "
            "that is trained; give type='fixed'"
        )


def _check_data(config: RunConfig, world_size: int, facts: ModelFacts) -> Iterator[str]:
    for name, task in config.tasks.items():
        if task.frozen and task.data.train:
            yield (
                f"tasks.{name} is frozen, so no head reads tasks.{name}.data.train; give "
                "data.train=None, or take frozen off"
            )
        elif not task.frozen and not task.data.train:
            yield (
                f"tasks.{name}.data.train is not given, so no stream feeds its head; name the shards to "
                "train on, leave the task out, "
                "or give frozen=True"
            )
        if config.train.eval_every is not None and not task.data.val:
            yield (
                f"train.eval_every is {config.train.eval_every}, but tasks.{name}.data.val is not "
                "given; name the shards to evaluate on"
            )


def _check_engine(config: RunConfig, world_size: int, facts: ModelFacts) -> Iterator[str]:
    if config.engine.type == "local" and world_size > 1:
        yield (
            f"engine.type is 'local', which is one process, but there are {world_size}; give "
            "engine.type='deepspeed'"
        )
    if config.engine.type == "local" and config.engine.deepspeed:
        yield "engine.deepspeed is given, but engine.type is 'local'; leave one of them out"


def _num_patches(task: TaskConfig, facts: ModelFacts) -> int:
    """Of the task's crop, or of the backbone's own grid."""
    if task.data.img_size is None:
        return math.prod(facts.grid)
    height, width = task.data.size
    return (height // facts.patch[0]) * (width // facts.patch[1])


def _complaint(where: str, check: Callable[..., object], *args: object, **options: object) -> Iterator[str]:
    """The ConfigError of a check that raises, as one of several mistakes."""
    try:
        check(*args, **options)
    except ConfigError as err:
        yield f"{where}: {err}"
