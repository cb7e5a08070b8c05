"""Checks that need two sections of a config, the model, or the number of ranks."""

import math
import re
from collections.abc import Callable, Iterator

from torch import nn

from pipeline.config.schema import RunConfig, TaskConfig, height_width
from pipeline.errors import ConfigError
from pipeline.merging.policies import POLICIES
from pipeline.merging.schedule import check_schedule
from pipeline.merging.traits import check_serves, refuse_merging, traits_of
from pipeline.parts import METRIC, TRAINED
from pipeline.plan.facts import ModelFacts, fed_tasks, merging_of, near_multiples, range_of
from pipeline.plan.masking import masking_mistakes
from pipeline.plan.mixed import mixing_mistakes


def mistakes_of(config: RunConfig, world_size: int, facts: ModelFacts) -> Iterator[str]:
    """Yields a sentence for each mistake, with the way out."""
    for check in (
        _check_images,
        _check_merging,
        _check_mode,
        _check_tasks,
        _check_mixture,
        _check_data,
        _check_engine,
    ):
        yield from check(config, world_size, facts)


def _check_images(config: RunConfig, world_size: int, facts: ModelFacts) -> Iterator[str]:
    given = {f"tasks.{name}.data.img_size": task.data.img_size for name, task in config.tasks.items()}
    given["backbone.img_size"] = config.backbone.img_size
    for where, size in ((where, size) for where, size in given.items() if size is not None):
        for pixels, side in sorted(set(zip(height_width(size), facts.patch, strict=True))):
            if pixels <= 0 or pixels % side:
                near = " or ".join(str(multiple) for multiple in near_multiples(max(pixels, 1), side))
                of = "" if pixels == size else f" ({pixels})"
                yield f"{where} is {size}, which does not divide by patch {side}{of}; nearest: {near}"
    yield from _check_frames(config)


def _check_frames(config: RunConfig) -> Iterator[str]:
    own = config.backbone.frames
    for name, task in config.tasks.items():
        asked = f"tasks.{name}.data.frames is {task.data.frames}"
        if task.data.frames is None or task.data.frames == own:
            continue
        if own > 1:
            yield f"{asked} and backbone.frames is {own}; give both alike, or leave data.frames out"
        else:
            yield f"{asked}, and the backbone reads images; give backbone.frames={task.data.frames} too"


def _check_merging(config: RunConfig, world_size: int, facts: ModelFacts) -> Iterator[str]:
    merging = config.merging
    own = [f"tasks.{name}.merging" for name, task in config.tasks.items() if task.merging is not None]
    if merging.policy == "none":
        if (
            own
            or merging.reduction != 0
            or merging.target_macs
            or merging.target_gmacs
            or config.train.reduction_range is not None
        ):
            fields = ("merging.reduction", "merging.target_macs", "merging.target_gmacs")
            *others, last = (*fields, "train.reduction_range", *own)
            yield (
                f"merging.policy is 'none', which removes no tokens; leave {', '.join(others)} and {last} "
                f"out, or give a policy ({', '.join(POLICIES.names())})"
            )
        return
    for name, task in config.tasks.items():
        patches = _num_patches(task, facts)
        num_tokens = patches + facts.num_prefix
        reduction = merging_of(config, name).reduction
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
    objective = config.objective.type
    agrees = objective in ("distill", "consistency")
    merges = any(_merges(config, name) for name in fed_tasks(config))
    if agrees and policy == "none":
        yield (
            f"objective.type is '{objective}' and merging.policy is 'none': teacher and student would be "
            "the same; give a policy"
        )
    elif agrees and not merges and METRIC not in TRAINED[mode]:
        yield (
            f"objective.type is '{objective}', but nothing merges, so teacher and student would be the same; "
            "give merging.reduction, or target_macs"
        )
    if objective == "consistency" and mode == "heads":
        yield (
            "objective.type is 'consistency', which compares what the backbone makes of two reductions; "
            "train.mode is 'heads', which leaves it as it is; give another mode, or type='supervised'"
        )
    yield from _check_instances(config)
    yield from masking_mistakes(config)
    if config.objective.type == "merge_cost" and mode not in ("modular", "end_to_end"):
        yield (
            "objective.type is 'merge_cost', which teaches the embeddings alone; train.mode is "
            f"'{mode}', give 'modular' or 'end_to_end'"
        )
    yield from _complaint("merging", _built_for, config, facts)
    if policy not in POLICIES.names() or METRIC not in TRAINED[mode]:
        return
    built = {name: POLICIES.usual(name) for name in POLICIES.names()}
    learned = [name for name, own in built.items() if own.learned or own.masks]
    if policy not in learned:
        yield (
            f"train.mode is '{mode}', but policy '{policy}' has no metric embedding to learn; give "
            f"train.mode='backbone', or a policy that has one ({', '.join(learned)})"
        )
    elif objective == "merge_cost" and not POLICIES.build(policy).embeds:
        yield (
            f"objective.type is 'merge_cost', which prices pairs by a metric embedding, and policy "
            f"'{policy}' makes its tokens of all patches; give 'supervised' or 'distill'"
        )
    elif config.objective.type != "merge_cost" and not any(
        _merges(config, name) for name in fed_tasks(config)
    ):
        yield (
            f"train.mode is '{mode}', but nothing merges, so nothing would reach the embeddings; "
            "give merging.reduction, or target_macs"
        )


def _check_instances(config: RunConfig) -> Iterator[str]:
    if config.objective.type != "i_mix":
        return
    if config.train.mode == "heads":
        yield (
            "objective.type is 'i_mix', which teaches the backbone; train.mode is 'heads', which leaves it "
            "as it is; give another mode, or type='supervised' for a linear probe"
        )
    for name, task in fed_tasks(config).items():
        if task.data.augment.mixes:
            yield (
                f"objective.type is 'i_mix', which reads no label and mixes images itself, and tasks.{name}."
                "data.augment mixes images and labels; leave mixup, cutmix and cutmix_minmax out"
            )
        if task.data.views > 2 and task.type != "captioning":
            yield (
                f"objective.type is 'i_mix', which compares two views of a sample, and tasks.{name}.data."
                f"views is {task.data.views}; give 1 or 2"
            )


def _built_for(config: RunConfig, facts: ModelFacts) -> None:
    """Raises ConfigError where the policy cannot be built, or cannot serve the model."""
    merging, rule = config.merging, config.merging.rotary if facts.rotary else None
    policy = POLICIES.build(merging.policy, **merging.options)
    model = f"'{config.backbone.name}'"
    if facts.never_merges:
        refuse_merging(policy, model, facts.never_merges)
    else:
        has = traits_of(class_token=facts.class_token, rotary=rule, times=facts.times)
        check_serves(policy, has, model)
    policy.schedule(0, facts.depth, math.prod(facts.grid) + facts.num_prefix, facts.num_prefix)


def _merges(config: RunConfig, task: str) -> bool:
    own = merging_of(config, task)
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
    elif best is not None and not (config.tasks[best].data.val or config.tasks[best].data.overfit):
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
    balancing = config.balancing.type
    if balancing == "meltr":
        yield from _check_halves(config)
    if balancing not in ("gradient_norm", "meltr") or len(fed) < 2:
        return
    if config.mixing.mode == "sampled":
        yield (
            f"balancing.type is '{balancing}', which compares the tasks' gradients of one step; "
            "give mixing.mode='all'"
        )
    if balancing == "gradient_norm" and config.balancing.every == 0:
        yield (
            "balancing.type is 'gradient_norm' and balancing.every is 0: nothing would be measured; "
            "give a number of steps"
        )
    mode, embedding = config.train.mode, config.merging.embedding
    if mode == "heads" or (mode == "modular" and embedding == "per_task"):
        yield (
            f"balancing.type is '{balancing}', but in train.mode='{mode}' the tasks share nothing "
            "that is trained; give type='fixed'"
        )


def _check_halves(config: RunConfig) -> Iterator[str]:
    """That a step has two micro-batches of each task, by which the loss transformer learns."""
    for name, task in fed_tasks(config).items():
        if task.accumulation * config.engine.accumulation < 2:
            size = task.data.batch_size
            yield (
                f"balancing.type is 'meltr', which compares two micro-batches of each task in a step, and "
                f"tasks.{name} has one; give tasks.{name}.accumulation=2, or engine.accumulation=2 (with "
                f"tasks.{name}.data.batch_size={max(1, size // 2)} a step has as many samples)"
            )


def _check_data(config: RunConfig, world_size: int, facts: ModelFacts) -> Iterator[str]:
    yield from mixing_mistakes(config, facts)
    for name, task in config.tasks.items():
        if task.frozen and task.data.train:
            yield (
                f"tasks.{name} is frozen, so no head reads tasks.{name}.data.train; give "
                "data.train=None, or take frozen off"
            )
        elif not task.frozen and not task.data.train:
            yield (
                f"tasks.{name}.data.train is not given, so no stream feeds its head; name the shards to "
                "train on, leave the task out, or give frozen=True"
            )
        if config.train.eval_every is not None and not (task.data.val or task.data.overfit):
            yield (
                f"train.eval_every is {config.train.eval_every}, but tasks.{name}.data.val is not "
                "given; name the shards to evaluate on"
            )

    ways = {name: task.data.start_workers for name, task in fed_tasks(config).items()}
    if config.train.workers is not None and len(set(ways.values())) > 1:
        given = ", ".join(f"tasks.{name}.data.start_workers={way!r}" for name, way in ways.items())
        yield f"train.workers starts workers that all tasks share, and the tasks differ: {given}; give one"


def _check_engine(config: RunConfig, world_size: int, facts: ModelFacts) -> Iterator[str]:
    if config.engine.type == "local" and world_size > 1:
        yield (
            f"engine.type is 'local', which is one process, but there are {world_size}; give "
            "engine.type='deepspeed'"
        )
    if config.engine.type == "local" and config.engine.deepspeed:
        yield "engine.deepspeed is given, but engine.type is 'local'; leave one of them out"
    if config.backbone.peers == 2:
        yield from _check_peers(config)
    yield from _check_compile(config, world_size)


def _check_peers(config: RunConfig) -> Iterator[str]:
    """What two networks, which are one model for the engine, cannot do."""
    engine, balancing = config.engine, config.balancing.type
    divides = engine.type == "fsdp" or (engine.type == "deepspeed" and engine.zero_stage == 3)
    if divides or engine.compile != "none":
        yield (
            "backbone.peers is 2, and two networks are neither compiled nor divided among ranks; give "
            "engine.compile='none', and engine.zero_stage=2 or less"
        )
    if balancing != "fixed":
        yield (
            f"backbone.peers is 2, and balancing.type is '{balancing}', which weighs the losses of one "
            "network; give balancing.type='fixed'"
        )


def _check_compile(config: RunConfig, world_size: int) -> Iterator[str]:
    engine, asked = config.engine, f"engine.compile is '{config.engine.compile}'"
    if engine.compile == "none":
        return
    if engine.type == "deepspeed" and engine.zero_stage == 3:
        yield (
            f"{asked}, and engine.zero_stage is 3, which gathers weights inside of blocks; give "
            "zero_stage=2, engine.type='fsdp' with compile='blocks', or compile='none'"
        )
    if engine.type == "fsdp" and engine.compile == "model" and world_size > 1:
        yield f"{asked}, and engine.type 'fsdp' gathers weights block by block; give compile='blocks'"
    for name, task in fed_tasks(config).items():
        if task.head.get("token_mixup"):
            yield (
                f"{asked}, and tasks.{name}.head.token_mixup mixes tokens between blocks, by choices of the "
                "host; give compile='none'"
            )
    if config.balancing.type == "meltr":
        yield (
            f"{asked}, and balancing.type is 'meltr', which goes back through a graph once for each loss, as "
            "compiled ones cannot; give compile='none'"
        )
    if config.objective.type == "consistency":
        yield (
            f"{asked}, and objective.type 'consistency' draws a reduction in each step, each of which "
            "would be compiled; give compile='none'"
        )
    for where, span in dict(range_of(config, name) for name in fed_tasks(config)).items():
        if span is not None and span[0] < span[1]:
            yield (
                f"{asked}, and {where} draws one of {span[1] - span[0] + 1} reductions in each step, each of "
                "which would be compiled; give one reduction, or compile='none'"
            )


def _num_patches(task: TaskConfig, facts: ModelFacts) -> int:
    """Number of patches of the task's crop, or of the backbone's grid. Of clips, that of tubelets."""
    if task.data.img_size is None:
        return math.prod(facts.grid)
    height, width = task.data.size
    return math.prod(facts.grid[:-2]) * (height // facts.patch[0]) * (width // facts.patch[1])


def _complaint(where: str, check: Callable[..., object], *args: object, **options: object) -> Iterator[str]:
    """Yields the ConfigError of a check that raises, as one of several mistakes."""
    try:
        check(*args, **options)
    except ConfigError as err:
        yield f"{where}: {err}"
