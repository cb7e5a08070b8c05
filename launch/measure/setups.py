"""Runs that a sweep compares: seeds of one setup, for which policies their weights differ, and the models
that each policy is measured on."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from launch.measure.points import LeftOut
from launch.saved.policy_names import is_drawn, read_policy
from launch.saved.run import SavedRun, build
from pipeline.config.schema import RunConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.model import MultiTaskModel
from pipeline.parts import BASE, HEAD, roles_of


class Variant(NamedTuple):
    """A model of a policy. run: the number of its run."""

    run: int
    model: MultiTaskModel


def check_one_setup(runs: Sequence[SavedRun]) -> None:
    """Raises ConfigError for runs that differ in more than their seed and how they were trained."""
    first = _setup(runs[0].config)
    for run in runs[1:]:
        if _setup(run.config) != first:
            raise ConfigError(
                f"{run.folder} and {runs[0].folder} differ in backbone or tasks, in what their embeddings "
                "share or in how rotary positions merge; sweep runs of one setup together"
            )
        for task in run.config.tasks:
            known = [classes for classes in (runs[0].classes(task), run.classes(task)) if classes]
            if len(known) == 2 and known[0] != known[1]:
                raise ConfigError(
                    f"{run.folder} and {runs[0].folder} have other classes of task '{task}', or the "
                    "same in another "
                    "order, as their shards had when they were trained; sweep them one by one"
                )


def _setup(config: RunConfig) -> tuple[Any, ...]:
    backbone = replace(config.backbone, weights=None, pretrained=False)
    merging = replace(config.merging, policy="none", reduction=0, options={})
    return backbone, config.tasks, merging


def variants_of(
    policies: Sequence[str],
    runs: Sequence[SavedRun],
    device: torch.device,
    *,
    seeds: Sequence[int] | None = None,
    left_out: list[LeftOut] | None = None,
) -> dict[str, list[Variant]]:
    """Policy -> its models on the device: one for each run whose weights differ, and for each of the seeds
    where something is drawn. seeds: None takes each run's own, and of merges the policy's.

    left_out: where a policy that cannot serve the runs is added with the reason; None: its ConfigError or
    CheckpointError is raised. A learned policy is measured on those runs that have learned it.
    """
    found: dict[str, list[Variant]] = {}
    for policy in policies:
        try:
            found[policy] = _variants(policy, runs, device, seeds, lenient=left_out is not None)
        except (ConfigError, CheckpointError) as err:
            if left_out is None or policy == "none":
                raise
            left_out.append(LeftOut(policy, None, str(err)))
    return found


def _variants(
    policy: str,
    runs: Sequence[SavedRun],
    device: torch.device,
    seeds: Sequence[int] | None,
    *,
    lenient: bool,
) -> list[Variant]:
    _, untrained, learned = read_policy(policy)
    draws = is_drawn(policy)
    drawn = seeds if seeds and draws else [None]
    all_runs = learned and (not untrained or (draws and not seeds))
    numbers = range(len(runs)) if all_runs else _different(policy, runs)
    found: list[Variant] = []
    refused: list[ConfigError | CheckpointError] = []
    for number in numbers:
        for seed in drawn:
            try:
                model = build(runs[number], policy, seed=seed, compiled=True)
            except (ConfigError, CheckpointError) as err:
                if not lenient:
                    raise
                refused.append(err)
            else:
                found.append(Variant(number, model.to(device)))
    if not found:
        raise refused[0]
    return found


def _different(policy: str, runs: Sequence[SavedRun]) -> range:
    """Numbers of all runs, or of the first alone where all have the same weights."""
    return range(1 if share_base(runs, policy) else len(runs))


def share_base(runs: Sequence[SavedRun], policy: str = "none") -> bool:
    """Whether all runs of one setup have the same backbone and heads. Weights that the policy does not use,
    of embeddings and of the balance, do not matter."""
    if len(runs) == 1:
        return True
    roles = roles_of(build(runs[0], policy))
    used = [name for name in runs[0].tensors if name in roles and roles[name].kind in (BASE, HEAD)]
    return all(torch.equal(runs[0].tensors[name], run.tensors[name]) for run in runs[1:] for name in used)
