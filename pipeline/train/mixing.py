"""The tasks of a step: a function of the configuration and (seed, step), so the same on every rank and after
a resumption."""

from pipeline.plan.resolve import ResolvedRun
from pipeline.rng import uniform


def tasks_of_step(resolved: ResolvedRun, step: int) -> tuple[str, ...]:
    """The task of each micro-batch of the step, in order: every task, or one that is drawn, as often as it
    has micro-batches. Under `meltr` the first half of each task's, rounded down, come before all others."""
    counts = resolved.micro_batches
    names = list(counts) if resolved.config.mixing.mode == "all" else [draw_task(resolved, step)]
    if resolved.config.balancing.type != "meltr":
        return tuple(name for name in names for _ in range(counts[name]))
    first, second = ([name for name in names for _ in range((counts[name] + more) // 2)] for more in (0, 1))
    return (*first, *second)


def draw_task(resolved: ResolvedRun, step: int) -> str:
    """A task, drawn with the probability of its share."""
    point = uniform(resolved.config.seed, "task", step)
    for name, share in resolved.shares.items():
        point -= share
        if point < 0:
            return name
    # by rounding the shares may add up to less than 1
    return list(resolved.shares)[-1]
