"""Sums that stay on the device until somebody asks for them."""

import torch
from torch import Tensor

from pipeline.interfaces import Engine, Sums


class MetricSums:
    """Adds (sum, count) pairs by name. only_finite: leaves out what is not, with its count, as a skipped step must not hide the others."""

    def __init__(self, *, only_finite: bool = False) -> None:
        self._sums: dict[str, Tensor] = {}
        self._only_finite = only_finite

    def add(self, sums: Sums, prefix: str = "") -> None:
        """Asks the device nothing."""
        for name, (total, count) in sums.items():
            pair = torch.stack([total.double(), count.to(total.device).double()])
            if self._only_finite:
                pair = torch.where(pair.isfinite().all(), pair, 0.0)
            key = prefix + name
            self._sums[key] = self._sums[key] + pair if key in self._sums else pair

    def names(self) -> list[str]:
        return sorted(self._sums)

    def reduce(self, engine: Engine, names: list[str] | None = None) -> dict[str, tuple[float, float]]:
        """(sum, count) over all ranks by name, and empties this. One sum over ranks and one read, called by every rank.

        names: the same on every rank; None where the ranks are known to have added the same ones.
        """
        names = self.names() if names is None else names
        if not names:
            return {}
        nothing = torch.zeros(2, dtype=torch.float64, device=engine.device)
        table = torch.stack([self._sums.get(name, nothing) for name in names])
        self._sums = {}
        return {name: (total, count) for name, (total, count) in zip(names, engine.all_reduce(table).tolist(), strict=True)}


def mean(pair: tuple[float, float]) -> float:
    total, count = pair
    return total / count if count else float("nan")
