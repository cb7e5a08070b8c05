"""The points of a sweep: which policy at which target, by which schedule."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from launch.measure.evaluator import warn
from launch.measure.points import FOUND, GIVEN, MACS, MERGED, SCHEDULES, TOKENS, LeftOut, Target
from launch.measure.solving import FoundSchedules
from launch.saved.reductions import checked_reduction
from pipeline.backbone.backbone import Backbone
from pipeline.backbone.macs import reduction_for_macs
from pipeline.backbone.policies_of_blocks import with_options
from pipeline.backbone.vit import MergingViT
from pipeline.errors import ConfigError
from pipeline.merging.schedule import EVEN, WITHIN, AnyReduction, ReductionSpec, reduction_for_merged
from pipeline.model import MultiTaskModel
from pipeline.token_state import Grid

log = logging.getLogger(__name__)

Models = dict[str, list[MultiTaskModel]]
"""Policy -> its models, one per run with different weights."""
Solver = Callable[[Backbone, float, Grid], ReductionSpec]
"""Maps (backbone, share, grid of patches) to the reduction that reaches the share."""


@dataclass(frozen=True)
class Aims:
    """What is asked of a sweep. targets: reductions where `exact`, as whole numbers always are, else
    shares: of the patches to merge where `merged`, else of the encoder's MACs; the reduction is then solved
    for each grid of patches. within: the share of the blocks, from the first one, that merge in even
    schedules. schedules: of SCHEDULES, a point for each. Raises ConfigError for what does not go together."""

    targets: Sequence[Target]
    merged: bool = False
    exact: bool = False
    within: float = 1.0
    schedules: Sequence[str] = (EVEN,)

    def __post_init__(self) -> None:
        targets = [_as_key(target) for target in self.targets]
        object.__setattr__(self, "targets", targets)
        object.__setattr__(self, "exact", self.exact or all(isinstance(target, int) for target in targets))
        if not 0 < self.within <= 1:
            raise ConfigError(f"within is {self.within}; give a share of the blocks, in (0, 1]")
        if self.within < 1 and self.exact:
            raise ConfigError(
                "within goes with shares (--macs, --merged); tokens removed per block are those of each "
                "block, so leave it out"
            )
        check_schedules(self.schedules)
        others = [name for name in self.schedules if name != EVEN]
        if others and self.exact:
            raise ConfigError(
                f"schedule '{others[0]}' goes with shares (--macs); a reduction says r of each block itself, "
                "so leave one of the two out"
            )
        if others and self.within < 1:
            raise ConfigError(
                f"within says which blocks merge, and so does schedule '{others[0]}'; leave one out"
            )
        found = [name for name in others if name in FOUND]
        if found and self.merged:
            raise ConfigError(
                f"schedule '{found[0]}' spends a number of MACs where merges cost least; give --macs in "
                "place of --merged"
            )

    @property
    def finds(self) -> bool:
        """Whether some schedules are found on images."""
        return not set(FOUND).isdisjoint(self.schedules)

    @property
    def kind(self) -> str:
        """Of the targets, in the words of a sweep's conditions."""
        return TOKENS if self.exact else MERGED if self.merged else MACS

    def conditions(self, seeds: Sequence[int] | None) -> dict[str, Any]:
        """What a sweep's conditions say of them. seeds: of what is drawn, where they were given."""
        said = {"targets": self.kind, "within": self.within, "schedules": list(self.schedules)}
        return said | ({"seeds": list(seeds)} if seeds else {})

    def solvers(self, found: Callable[[str], Solver]) -> dict[str, Solver | None]:
        """Schedule -> its solver, None where targets are reductions. found: makes those of FOUND."""
        if self.exact:
            return {GIVEN: None}
        spread = _merging if self.merged else reduction_for_macs
        shares = WITHIN | {EVEN: self.within}
        return {
            name: found(name) if name in FOUND else partial(spread, within=shares[name])
            for name in self.schedules
        }


def _as_key(target: Target) -> Target:
    """The target, hashable. A tuple of two is (r, inflection), so r of two blocks gets a third, of 0."""
    if not isinstance(target, list):
        return target
    return (*target, 0) if len(target) == 2 else tuple(target)


def check_schedules(names: Sequence[str]) -> None:
    """Raises ConfigError for what is none of SCHEDULES."""
    for name in names:
        if name not in SCHEDULES:
            raise ConfigError(f"schedule is '{name}'; give one or more of {', '.join(SCHEDULES)}")


def check_rounds(rounds: int) -> None:
    """Raises ConfigError for fewer timed rounds than none."""
    if rounds < 0:
        raise ConfigError(f"rounds is {rounds}; give 0, which leaves speed out, or more")


def _merging_part(model: MultiTaskModel) -> MergingViT:
    """The part that merges; other backbones are refused before they are planned."""
    assert isinstance(model.backbone, MergingViT)
    return model.backbone


def _merging(backbone: Backbone, share: float, grid: Grid, *, within: float) -> ReductionSpec:
    return reduction_for_merged(backbone.depth, share, grid, within=within)


@dataclass(frozen=True)
class Planned:
    """A point to measure. schedule: its kind, and options: see `Point`."""

    policy: str
    target: Target
    schedule: str
    reduction: AnyReduction
    options: Mapping[str, Any] = field(default_factory=dict)

    def on(self, model: MultiTaskModel) -> MultiTaskModel:
        """The model under the policy's options of this point: itself, or a copy that shares its tensors."""
        return with_options(model, self.options, _merging_part)


def plan(
    task: str,
    models: Models,
    wanted: Mapping[str, Sequence[Target]],
    aims: Aims,
    found: Callable[[str, str], Solver],
    grid: Grid,
    left_out: list[LeftOut],
) -> list[Planned]:
    """Points to measure. The metric's own MACs count, so the same MACs can be different reductions.

    found: makes the solver of a policy for a schedule of FOUND. Targets that a policy cannot reach on the
    first input's grid are left out with a warning, and added to `left_out`.
    """
    points = [Planned("none", target, "", target) for target in wanted["none"]]
    for policy, targets in wanted.items():
        if policy == "none":
            continue
        for name, solve in aims.solvers(partial(found, policy)).items():
            for target in targets:
                try:
                    reduction = _reduction(models[policy][0], target, solve, grid)
                    points.append(Planned(policy, target, name, reduction, _options(solve, target)))
                except ConfigError as err:
                    leave_out(left_out, task, (policy, target, name), err)
    return points


def leave_out(left_out: list[LeftOut], task: str, point: tuple[str, Target, str], err: ConfigError) -> None:
    """Notes a point that a policy refuses or cannot reach, and warns of it. point: policy, target, and kind
    of its schedule."""
    policy, target, kind = point
    by = "" if kind in (GIVEN, EVEN) else f" by schedule {kind}"
    warn(log, "%s, task %s, is left out at %s%s: %s", policy, task, target, by, err)
    left_out.append(LeftOut(policy, target, str(err), kind))


def _options(solve: Solver | None, target: Target) -> Mapping[str, Any]:
    """The options of the policy that were found with a schedule for the target."""
    return solve.options(target) if isinstance(solve, FoundSchedules) and isinstance(target, float) else {}


def _reduction(model: MultiTaskModel, target: Target, solve: Solver | None, grid: Grid) -> AnyReduction:
    if solve is None or not isinstance(target, float):
        return checked_reduction(model, grid, target)
    reached = cache(partial(solve, model.backbone, target))
    # raises ConfigError now, before anything is measured
    reached(grid)
    return reached
