"""Short runs of a real model that merges by each registered policy of images, as kinds of the runs of
`engine_worker`.

Two patches become one in the first block. Most policies have nothing to choose there; those that prune choose
one of two, once in a pass, so that rounding would have to meet a tie.
"""

from functools import partial
from typing import Any

import torch
from objectives_for import objectives_for
from standin import CLASSES
from tiny import OF_IMAGES, tiny_vit

from pipeline.merging.policies import POLICIES
from pipeline.model import MultiTaskModel
from pipeline.objectives import OBJECTIVES
from tasks.classification import ClassificationTask

STEPS = 2
IMAGE = (8, 16)
ELSEWHERE = ("i_mix", "merge_cost")
"""Objectives whose loss of a batch is not the mean of those of its parts: the partners of i_mix are of one
rank, and merge_cost has runs of its own."""
OURS = [name for name in OF_IMAGES if POLICIES.get(name).__module__.startswith("pipeline.merging.")]
PARTS = "+"
EVERY: dict[str, dict[str, Any]] = {
    f"{policy}{PARTS}{objective}": {"mode": "joint" if POLICIES.usual(policy).learned else "backbone"}
    for policy in OURS
    for objective in objectives_for(ClassificationTask)
    if objective not in ELSEWHERE and (objective == "supervised" or POLICIES.usual(policy).merges)
}
"""Kind of run -> settings of its training: each policy with each objective that it can train with. Where
nothing merges, two passes agree, and the gradient of that is rounding."""
USUAL = {kind: mode for kind, mode in EVERY.items() if kind.endswith(f"{PARTS}supervised")}
"""Each policy with the task's own loss."""


def stage_of(kind: str) -> int:
    """The stage of ZeRO at which a kind of USUAL runs where not all do: the policies share the four out."""
    return list(USUAL).index(kind) % 4


def model_of(kind: str) -> MultiTaskModel:
    policy, objective = kind.split(PARTS)
    sizes = {"depth": 2, "embed_dim": 24, "num_heads": 2}
    backbone = tiny_vit(policy, reduction=[1, 0], img_size=IMAGE, timm_options=sizes)
    task = ClassificationTask(backbone, num_classes=CLASSES)
    torch.nn.init.normal_(task.head.weight, std=0.5)
    return MultiTaskModel(backbone, {"a": task}, OBJECTIVES.build(objective))


MODELS = {kind: partial(model_of, kind) for kind in EVERY}
