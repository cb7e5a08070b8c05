"""Tasks that the backbone or the objective of a run cannot serve."""

from collections.abc import Callable, Mapping, Sequence

from pipeline.backbone.backbone import Backbone
from pipeline.config.schema import RunConfig, TaskConfig
from pipeline.errors import ConfigError
from pipeline.interfaces import Task
from pipeline.merging.policy import MergePolicy
from pipeline.objectives import Objective
from pipeline.plan.facts import fed_tasks, range_of


def check_inputs(backbone: Backbone, tasks: Mapping[str, Task]) -> None:
    """Raises ConfigError with all tasks that read clips where the backbone reads images, or the reverse."""
    clips = backbone.reads_clips
    wrong = [f"tasks.{name}" for name, task in tasks.items() if task.reads_clips != clips]
    if wrong:
        they, it = ("images", "clips") if clips else ("clips", "images")
        way_out = "leave backbone.frames out" if clips else "give backbone.frames, such as 16"
        raise ConfigError(f"{', '.join(wrong)} read {they}, and the backbone {it}; {way_out}, or other tasks")


def check_losses(config: RunConfig, tasks: Mapping[str, Task], objective: Objective) -> None:
    """Raises ConfigError with all tasks of which the objective cannot compute the loss, and all whose labels
    would have to follow tokens and cannot."""
    mistakes = [
        f"tasks.{name}: {reason}"
        for name, own in fed_tasks(config).items()
        for reason in (objective.refuses(tasks[name]), _refuses_labels(own, tasks[name]))
        if reason
    ]
    if mistakes:
        raise ConfigError("\n  ".join(mistakes))


def _refuses_labels(config: TaskConfig, task: Task) -> str | None:
    """Why the labels of a task cannot follow tokens, where its config asks for that; None where they can.
    What the backbone has to do with it, the plan checks."""
    if config.data.augment.mix_labels != "tokens" or task.follows_tokens:
        return None
    return (
        f"data.augment.mix_labels is 'tokens', and {type(task).__name__} has no labels of whole images, "
        "which could follow them; give 'area'"
    )


def check_token_mixing(
    config: RunConfig,
    tasks: Mapping[str, Task],
    objective: Objective,
    policy: MergePolicy,
    schedule: Callable[[str, int | None], Sequence[int]],
) -> None:
    """Raises ConfigError with all tasks whose tokens are to be mixed and cannot be. schedule: gives r of each
    block, for a task and the reduction of a step, or None."""
    mistakes: list[str] = []
    for name, own in fed_tasks(config).items():
        mixing, (_, span) = tasks[name].token_mixing, range_of(config, name)
        if mixing is None:
            continue
        try:
            _check_goes_with(config, own, objective)
            for r in (None,) if span is None else span:
                mixing.check_schedule(schedule(name, r), policy)
        except ConfigError as err:
            mistakes.append(f"tasks.{name}: {err}")
    if mistakes:
        raise ConfigError("\n  ".join(mistakes))


def _check_goes_with(config: RunConfig, own: TaskConfig, objective: Objective) -> None:
    if not objective.one_pass:
        raise ConfigError(
            f"head.token_mixup mixes images inside of the model, and objective '{config.objective.type}' "
            "needs them as they are; give objective.type='supervised'"
        )
    if own.data.augment.mix_labels == "tokens":
        raise ConfigError(
            "head.token_mixup gives tokens of more than two images to one, whose labels one number cannot "
            "follow; give data.augment.mix_labels='area' or 'patches'"
        )
