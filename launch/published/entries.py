"""The points at which a published model is held against itself unmerged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from launch.measure.planning import Aims, leave_out
from launch.measure.points import FOUND, GIVEN, LeftOut, Target
from launch.published.merged import counted_for
from pipeline.backbone.macs import Counted
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.backbone.policies_of_blocks import with_options
from pipeline.errors import ConfigError
from pipeline.merging.schedule import EVEN, WITHIN, check_schedule, reduction_for_merged
from pipeline.objectives.signal import Signal

TASK = "agreement"
Models = Mapping[str, Sequence[MergingModel]]
"""Policy -> its models, one for each seed where something is drawn; `none` is among them."""
Find = Callable[[str, str, Counted, float], tuple[list[int], Mapping[str, Any]]]
"""Maps (policy, schedule of FOUND, what its MACs are counted of, share of the MACs) to r of each block, and
the options of the policy that were found with them. Raises ConfigError."""


@dataclass(frozen=True)
class Entry:
    """The models of a policy at one target, which is 0 for the unmerged one, and their r of each block. kind,
    options: see `Point`."""

    policy: str
    target: Target
    kind: str
    models: Sequence[MergingModel]
    schedule: list[int]
    options: Mapping[str, Any] = field(default_factory=dict)


def entries_of(
    models: Models, aims: Aims, find: Find | None, signal: Signal, image: Tensor
) -> tuple[list[Entry], list[LeftOut]]:
    """The points to measure, the unmerged model first, and those that a policy refuses or cannot reach, which
    are left out with a warning. Raises ConfigError where none is left.

    image [1, 3, H, W]: each point encodes it, so that a refusal is known before anything is measured.
    """
    counted_for(models["none"][0], image)
    found = [Entry("none", 0, "", models["none"], [0] * len(models["none"][0].merging_blocks))]
    left_out: list[LeftOut] = []
    kinds = (GIVEN,) if aims.exact else tuple(dict.fromkeys(aims.schedules))
    wanted = [
        (policy, kind, target)
        for policy in models
        if policy != "none"
        for kind in kinds
        for target in aims.targets
    ]
    for policy, kind, target in wanted:
        model = models[policy][0]
        try:
            counted = counted_for(model, image)
            schedule, options = _schedule(policy, counted, target, kind, aims, find)
            own = [with_options(each, options, lambda model: model) for each in models[policy]]
            signal.encode(own[0], image, reduction=schedule)
            found.append(Entry(policy, target, kind, own, schedule, options))
        except ConfigError as err:
            leave_out(left_out, TASK, (policy, target, kind), err)
    if len(found) == 1 and len(models) > 1:
        raise ConfigError("no policy can be run at any of the asked points: see the reasons above")
    return found, left_out


def _schedule(
    policy: str, counted: Counted, target: Target, kind: str, aims: Aims, find: Find | None
) -> tuple[list[int], Mapping[str, Any]]:
    """r of each block, and options of the policy that go with them. Raises ConfigError where the target
    cannot be reached."""
    depth, patches = len(counted.blocks), counted.patches
    if kind == GIVEN or not isinstance(target, float):
        check_schedule(target, depth, patches + counted.num_prefix, counted.num_prefix)
        return list(counted.schedule(target)), {}
    if kind in FOUND:
        assert find is not None, "who asks for schedules that are found says by what"
        return find(policy, kind, counted, target)
    within = aims.within if kind == EVEN else WITHIN[kind]
    if aims.merged:
        return reduction_for_merged(depth, target, (patches, 1), within=within), {}
    return counted.reduction_for(target, within=within), {}
