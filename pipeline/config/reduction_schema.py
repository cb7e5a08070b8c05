"""Settings of the reduction: how many tokens are removed, for a run or for a task. Standard library only."""

from dataclasses import dataclass

from pipeline.errors import ConfigError

Reduction = int | float | tuple[int, float] | list[int]
"""r per block, a keep rate in (0, 1], (r, inflection), or one r for each block; a sequence of two is always
(r, inflection)."""

REDUCTION_FORMS = (
    "an integer from 0, a keep rate in (0, 1], (r, inflection) with inflection in [-1, 1], or a list of "
    "integers"
)


def require(holds: bool, message: str) -> None:
    """Raises ConfigError with the message unless the condition holds."""
    if not holds:
        raise ConfigError(message)


def require_range(name: str, span: tuple[int, int] | None) -> None:
    low, high = span or (0, 0)
    require(0 <= low <= high, f"{name} is {span}; give (low, high) with 0 <= low <= high")


def _is_reduction(value: Reduction) -> bool:
    if isinstance(value, tuple):
        return value[0] >= 0 and -1 <= value[1] <= 1
    if isinstance(value, list):
        return all(r >= 0 for r in value)
    return value >= 0 if isinstance(value, int) else 0 < value <= 1


@dataclass(frozen=True, kw_only=True)
class ReductionConfig:
    """Number of tokens that are removed, given by one of the first three fields."""

    reduction: Reduction = 0
    """Tokens removed per block: int, (r, inflection), list per block, or a keep rate in (0, 1]."""
    target_macs: float | None = None
    """Fraction of the unmerged MACs, in (0, 1); the solver finds the reduction. Excludes `reduction`."""
    target_gmacs: float | None = None
    """10^9 multiply-accumulates of one image through the backbone, which papers call GFLOPs; the solver finds
    the reduction."""
    within: float = 1.0
    """Share of the blocks, from the first one, that merge; only with a target."""

    def __post_init__(self) -> None:
        macs, gmacs = self.target_macs, self.target_gmacs
        require(macs is None or 0 < macs < 1, f"merging.target_macs is {macs}; give a fraction in (0, 1)")
        require(gmacs is None or gmacs > 0, f"merging.target_gmacs is {gmacs}; give a number above 0")
        require(
            0 < self.within <= 1, f"merging.within is {self.within}; give a share of the blocks, in (0, 1]"
        )
        require(
            self.within == 1 or macs is not None or gmacs is not None,
            "merging.within goes with target_macs or target_gmacs; leave it out",
        )
        require(
            _is_reduction(self.reduction), f"merging.reduction is {self.reduction}; give {REDUCTION_FORMS}"
        )
        given = [name for name in ("reduction", "target_macs", "target_gmacs") if getattr(self, name)]
        require(len(given) <= 1, f"merging.{' and merging.'.join(given)} exclude one another: give one")


@dataclass(frozen=True, kw_only=True)
class TaskMergingConfig(ReductionConfig):
    """A task's own reduction, in place of the run's."""

    reduction_range: tuple[int, int] | None = None
    """Range of reductions in place of train.reduction_range."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("merging.reduction_range", self.reduction_range)
