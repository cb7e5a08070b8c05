"""What takes two sections, the model or the number of ranks to see: checked before a GPU or a process group is touched.

This file stands above `pipeline.merging`, whose rules it asks; the rest of `pipeline.config` stands below everything.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pipeline.config.build import all_mistakes
from pipeline.config.schema import RunConfig, TaskConfig, height_width
from pipeline.errors import ConfigError
from pipeline.merging.policies import POLICIES
from pipeline.merging.schedule import check_schedule

NEEDS_EMBEDDING = ("modular", "end_to_end", "joint")
"""Training modes that learn the metric embeddings."""


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
    global_batch: dict[str, int]
    """Samples of one optimizer step, were all its micro-batches of that task."""
    total_steps: int | None
    """Optimizer steps; None where `train.epochs` is given and the number of samples is not known."""


def resolve(config: RunConfig, world_size: int, facts: ModelFacts, num_samples: Mapping[str, int] | None = None) -> ResolvedRun:
    """Checks the run as a whole; ConfigError lists all mistakes at once.

    num_samples: training samples of each task, needed to turn `train.epochs` into steps.
    """
    mistakes: list[str] = []
    for check in (_check_images, _check_merging, _check_mode, _check_data, _check_engine):
        mistakes.extend(check(config, world_size, facts))
    total_steps = _total_steps(config, world_size, num_samples)
    if total_steps is not None and config.optim.warmup_steps >= total_steps:
        mistakes.append(f"optim.warmup_steps is {config.optim.warmup_steps}, but the run has {total_steps} steps; give fewer")
    if mistakes:
        raise ConfigError(all_mistakes("the sections of the config do not agree", mistakes))
    global_batch = {name: task.data.batch_size * world_size * config.engine.accumulation for name, task in config.tasks.items()}
    return ResolvedRun(config=config, world_size=world_size, global_batch=global_batch, total_steps=total_steps)


def near_multiples(pixels: int, patch: int) -> list[int]:
    """The multiples of `patch` next to `pixels`, the nearer one first."""
    low = pixels // patch * patch
    return sorted((size for size in (low, low + patch) if size > 0), key=lambda size: abs(size - pixels))


def _total_steps(config: RunConfig, world_size: int, num_samples: Mapping[str, int] | None) -> int | None:
    """An epoch is as many micro-batches as all tasks together need to see each sample once."""
    if config.train.steps is not None:
        return config.train.steps
    if num_samples is None:
        return None
    assert config.train.epochs is not None, "the schema asks for one of epochs and steps"
    micro_batches = sum(num_samples[name] / (task.data.batch_size * world_size) for name, task in config.tasks.items())
    return max(1, math.ceil(config.train.epochs * micro_batches / config.engine.accumulation))


def _check_images(config: RunConfig, world_size: int, facts: ModelFacts) -> Iterator[str]:
    sizes = {f"tasks.{name}.data.img_size": task.data.img_size for name, task in config.tasks.items()}
    if config.backbone.img_size is not None:
        sizes["backbone.img_size"] = config.backbone.img_size
    for where, size in sizes.items():
        for pixels, side in sorted(set(zip(height_width(size), facts.patch, strict=True))):
            if pixels <= 0 or pixels % side:
                near = " or ".join(str(multiple) for multiple in near_multiples(max(pixels, 1), side))
                of = "" if pixels == size else f" ({pixels})"
                yield f"{where} is {size}, which does not divide by patch {side}{of}; nearest: {near}"


def _check_merging(config: RunConfig, world_size: int, facts: ModelFacts) -> Iterator[str]:
    merging, span = config.merging, config.train.reduction_range
    if merging.policy == "none":
        if merging.reduction != 0 or merging.target_macs or merging.target_gmacs or span is not None:
            yield (
                "merging.policy is 'none', which removes no tokens; leave merging.reduction, merging.target_macs, merging.target_gmacs and "
                f"train.reduction_range out, or give a policy ({', '.join(POLICIES.names())})"
            )
        return
    for name, task in config.tasks.items():
        patches = _num_patches(task, facts)
        num_tokens = patches + facts.num_prefix
        yield from _complaint(f"tasks.{name}", check_schedule, merging.reduction, facts.depth, num_tokens, facts.num_prefix)
        if span is not None and span[1] > patches // 2:
            yield (
                f"train.reduction_range goes to {span[1]}, but a block can merge at most {patches // 2} of the {patches} "
                f"patches of task '{name}'"
            )


def _check_mode(config: RunConfig, world_size: int, facts: ModelFacts) -> Iterator[str]:
    policy, mode = config.merging.policy, config.train.mode
    if config.objective.type == "distill" and policy == "none":
        yield "objective.type is 'distill' and merging.policy is 'none': teacher and student would be the same; give a policy"
    if config.objective.type == "merge_cost" and mode not in ("modular", "end_to_end"):
        yield f"objective.type is 'merge_cost', which teaches the embeddings alone; train.mode is '{mode}', give 'modular' or 'end_to_end'"
    yield from _complaint("merging", POLICIES.build, policy, **config.merging.options)
    if policy not in POLICIES.names() or mode not in NEEDS_EMBEDDING:
        return
    learned = [name for name in POLICIES.names() if POLICIES.build(name).metric_source == "embedding"]
    if policy not in learned:
        yield (
            f"train.mode is '{mode}', but policy '{policy}' has no metric embedding to learn; give train.mode='backbone', "
            f"or a policy that has one ({', '.join(learned)})"
        )


def _check_data(config: RunConfig, world_size: int, facts: ModelFacts) -> Iterator[str]:
    for name, task in config.tasks.items():
        if not task.data.train:
            yield f"tasks.{name}.data.train is not given; name the shards to train on, or leave the task out"
        if config.train.eval_every is not None and not task.data.val:
            yield f"train.eval_every is {config.train.eval_every}, but tasks.{name}.data.val is not given; name the shards to evaluate on"


def _check_engine(config: RunConfig, world_size: int, facts: ModelFacts) -> Iterator[str]:
    if config.engine.type == "local" and world_size > 1:
        yield f"engine.type is 'local', which is one process, but there are {world_size}; give engine.type='deepspeed'"
    if config.engine.type == "local" and config.engine.deepspeed:
        yield "engine.deepspeed is given, but engine.type is 'local'; leave one of them out"


def _num_patches(task: TaskConfig, facts: ModelFacts) -> int:
    height, width = height_width(task.data.img_size)
    return (height // facts.patch[0]) * (width // facts.patch[1])


def _complaint(where: str, check: Callable[..., object], *args: object, **options: object) -> Iterator[str]:
    """The ConfigError of a check that raises, as one of several mistakes."""
    try:
        check(*args, **options)
    except ConfigError as err:
        yield f"{where}: {err}"
