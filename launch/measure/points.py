"""The results of a sweep: what was measured at each point, and which points could not be."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from pipeline.merging.schedule import EARLY, EVEN, ReductionSpec

SOLVED, LEARNED, GIVEN = "solved", "learned", "given"
SCHEDULES = (EVEN, EARLY, SOLVED, LEARNED)
"""How a schedule reaches a share: all blocks merge alike, or those of the first half, or as it is measured to
cost least, or as it is learned by gradients. GIVEN is one that is asked for as it is."""
FOUND = (SOLVED, LEARNED)
"""Those that are found on images, by what merges do to the predictions."""


def known(figure: float | None) -> float | None:
    """The figure; None, which is n/a, for what is no finite number, as of a model whose outputs are none."""
    return figure if figure is not None and isfinite(figure) else None


Target = ReductionSpec
"""A share in (0, 1) of the encoder's unmerged MACs or of the patches (to merge), or a reduction."""
MACS, MERGED, TOKENS = (
    "share of the encoder's unmerged MACs",
    "share of the patches that is merged",
    "tokens removed per block",
)
"""Kinds of targets, in the words of a sweep's conditions."""
DIVERGENCE = "divergence"
"""The metric that says how far predictions are from the unmerged model's."""


@dataclass(frozen=True)
class Point:
    """Measurements of one policy at one target, which is 0 for the unmerged model. kind: of its schedule, one
    of SCHEDULES or GIVEN; empty for the unmerged model. schedule, tokens: those of the first input. macs:
    MACs of one image, with head and merging.

    scores: metric -> one value per model of the policy (None is n/a): per run, or per seed of what is drawn,
    and a single one where all have the same weights. images_per_s, encoder_images_per_s: speed of the whole
    inference and of its encoder, one value per round. peak_mib: see `launch.measure.watched`; None where it
    was not asked for. options: of the policy, which were learned with the schedule.
    """

    policy: str
    target: Target
    kind: str
    schedule: tuple[int, ...]
    tokens: tuple[int, ...]
    macs: int
    metric_macs: int
    head_macs: int
    scores: dict[str, list[float | None]]
    images_per_s: list[float]
    encoder_images_per_s: list[float]
    peak_mib: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def encoder_macs(self) -> int:
        return self.macs - self.head_macs


@dataclass(frozen=True)
class LeftOut:
    """What could not be measured, and why. target: None where the policy cannot serve the model at all. kind:
    of the schedule, see `Point`; empty where it is that of none."""

    policy: str
    target: Target | None
    reason: str
    kind: str = ""


@dataclass(frozen=True)
class Sweep:
    """Measurements of one task. units: metric -> unit, the task's main metric first. whole: the unmerged
    model."""

    task: str
    units: Mapping[str, str]
    whole: Point
    points: list[Point]
    conditions: dict[str, Any]
    left_out: list[LeftOut] = field(default_factory=list)

    @property
    def metric(self) -> str:
        return next(iter(self.units))
