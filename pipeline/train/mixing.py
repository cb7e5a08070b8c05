"""Which tasks a step holds: a function of the configuration and (seed, step), and so the same on every rank
and after a resumption."""

import torch

from pipeline.plan.resolve import ResolvedRun
from pipeline.rng import generator


def tasks_of_step(resolved: ResolvedRun, step: int) -> tuple[str, ...]:
    """The tasks of the step's micro-batches, in their order: of every task, or of the one that is drawn."""
    counts = resolved.micro_batches
    names = list(counts) if resolved.config.mixing.mode == "all" else [draw_task(resolved, step)]
    return tuple(name for name in names for _ in range(counts[name]))


def draw_task(resolved: ResolvedRun, step: int) -> str:
    """One task with the probability of its share."""
    point = float(
        torch.rand((), generator=generator(resolved.config.seed, "task", step), dtype=torch.float64)
    )
    for name, share in resolved.shares.items():
        point -= share
        if point < 0:
            return name
    return list(resolved.shares)[-1]  # where the shares add up to less than 1 by rounding
