"""Learning rates: closed forms of the configuration and the step."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pipeline.config.schema import OptimConfig, RunConfig
from pipeline.parts import BALANCE, BASE, HEAD, METRIC


def lr_at(step: int, config: OptimConfig, total_steps: int, peak: float | None = None) -> float:
    """Linear warm-up to `peak` (optim.lr), then the schedule; above 0 in every step."""
    peak = config.lr if peak is None else peak
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    done = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    if config.schedule == "constant":
        return peak
    if config.schedule == "step":
        return peak * config.gamma ** sum(step >= share * total_steps for share in config.milestones)
    floor = min(config.min_lr, peak)
    return floor + (peak - floor) * _left(done, config)


def _left(done: float, config: OptimConfig) -> float:
    """What is left of the way from the peak to the floor, at a share of the steps behind the warm-up."""
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return (1 - done) ** (1.0 if config.schedule == "linear" else config.power)


def rates_of_kinds(step: int, config: RunConfig, total_steps: int) -> dict[str, float]:
    """Maps a kind of parameters to its learning rate in the step, even if it rests. With layer decay, layers
    of the backbone have lower rates."""
    optim = config.optim
    peaks = {
        BASE: optim.lr,
        HEAD: optim.lr,
        METRIC: optim.lr if optim.metric_lr is None else optim.metric_lr,
        BALANCE: config.balancing.lr,
    }
    return {kind: lr_at(step, optim, total_steps, peak) for kind, peak in peaks.items()}


def reported_rates(
    groups: Sequence[Mapping[str, Any]], step: int, config: RunConfig, total_steps: int
) -> dict[str, float]:
    """Learning rates to report: `lr/KIND` of each kind that the run trains, and `lr`, which is the
    backbone's, else the heads', else the embeddings'."""
    kinds, rates = {group["kind"] for group in groups}, rates_of_kinds(step, config, total_steps)
    model = next((kind for kind in (BASE, HEAD, METRIC) if kind in kinds), BALANCE)
    return {"lr": rates[model]} | {f"lr/{kind}": rates[kind] for kind in sorted(kinds)}


def learning_rates(
    groups: Sequence[Mapping[str, Any]],
    step: int,
    config: RunConfig,
    total_steps: int,
    *,
    trains: Collection[str] | None = None,
    tasks: Collection[str] | None = None,
) -> dict[str, float]:
    """Maps the name of a parameter group to its learning rate; 0 for a group that rests in this step.

    trains: the kinds that learn in the step. tasks: the tasks of the step; parameters that only other tasks
    use rest. None: all.
    """
    rates = {
        kind: rate if trains is None or kind in trains else 0.0
        for kind, rate in rates_of_kinds(step, config, total_steps).items()
    }
    idle = [
        group["owner"] is not None and tasks is not None and group["owner"] not in tasks for group in groups
    ]
    return {
        g["name"]: 0.0 if rests else rates[g["kind"]] * g["lr_scale"]
        for g, rests in zip(groups, idle, strict=True)
    }
