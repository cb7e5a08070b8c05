"""Whether merging pays on a device, in words, from how many times faster it was in each round."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from pipeline.errors import counted


@dataclass(frozen=True)
class Measured:
    """A reduction at a batch size. speed_ups: over the unmerged model beside it, one per round. macs_ratio:
    how many times fewer MACs the encoder has."""

    label: str
    speed_ups: Sequence[float]
    macs_ratio: float

    @property
    def speed_up(self) -> float:
        return median(self.speed_ups)

    @property
    def share(self) -> float:
        """The part of the ratio of MACs that becomes time."""
        return self.speed_up / self.macs_ratio

    @property
    def spread(self) -> tuple[float, float]:
        """Speed-up that three quarters of the rounds pass, and that one quarter does."""
        if len(self.speed_ups) < 2:
            return self.speed_up, self.speed_up
        low, _, high = quantiles(self.speed_ups, n=4, method="inclusive")
        return low, high

    @property
    def pays(self) -> bool:
        """Whether it was faster in at least three quarters of the rounds."""
        return self.spread[0] > 1


def verdicts(found: dict[int, list[Measured]], compiled: bool) -> dict[int, str]:
    """Batch size -> a sentence. found: batch size -> its reductions, in the order of the tokens they remove,
    at least one."""
    paying = [size for size, rows in found.items() if any(row.pays for row in rows)]
    return {size: _sentence(rows, size, paying, compiled) for size, rows in found.items()}


def _sentence(rows: list[Measured], size: int, paying: list[int], compiled: bool) -> str:
    best = max(rows, key=lambda row: row.speed_up)
    images = counted(size, "image")
    if not best.pays:
        way = [] if compiled else ["--compile model"]
        way += [f"a batch of {min(paying)}, where it does"] if paying else ["a larger batch, model or image"]
        return (
            f"{images} at once: does not pay; the best, {best.label}, is {best.speed_up:.2f}x as fast as "
            f"unmerged. Try {' or '.join(way)}"
        )
    return (
        f"{images} at once: pays {_where(rows)}; best {best.label}: {best.speed_up:.2f}x, "
        f"{best.share:.0%} of the {best.macs_ratio:.2f}x fewer MACs"
    )


def _where(rows: list[Measured]) -> str:
    """From which reduction on it pays, or at which ones alone."""
    paying = [row for row in rows if row.pays]
    if paying == rows[-len(paying) :]:
        return f"from {paying[0].label} on"
    return f"at {', '.join(row.label for row in paying)} alone"
