"""Runs that a sweep compares: seeds of one setup, and for which policies their weights differ."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from launch.saved.policy_names import read_policy
from launch.saved.run import SavedRun, build
from pipeline.config.schema import RunConfig
from pipeline.errors import ConfigError
from pipeline.parts import BASE, HEAD, roles_of


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


def runs_of(policy: str, runs: Sequence[SavedRun]) -> Sequence[SavedRun]:
    """All runs, or only the first where all have the same weights. Weights that the policy does not use,
    of embeddings and of the balance, do not matter."""
    if read_policy(policy)[2]:
        return runs
    roles = roles_of(build(runs[0], policy))
    used = [name for name in runs[0].tensors if name in roles and roles[name].kind in (BASE, HEAD)]
    same = all(torch.equal(runs[0].tensors[name], run.tensors[name]) for run in runs[1:] for name in used)
    return runs[:1] if same else runs
