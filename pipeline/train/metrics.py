"""Sums of metrics, which stay on the device until they are read."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.interfaces import Rows, Sums, Tallies
from pipeline.ranks import Ranks
from pipeline.train.collective import joined, joined_json


class MetricSums:
    """Adds (sum, count) pairs by name. only_finite: leaves out pairs that are not finite, so that a skipped
    step does not hide the others."""

    def __init__(self, *, only_finite: bool = False) -> None:
        self._sums: dict[str, Tensor] = {}
        self._only_finite = only_finite

    def add(self, sums: Sums, prefix: str = "") -> None:
        """Adds the sums under prefix + name. The host does not wait for the device."""
        for name, (total, count) in sums.items():
            total = total.double()
            count = count.to(total) if isinstance(count, Tensor) else torch.full_like(total, count)
            pair = torch.stack([total, count])
            if self._only_finite:
                pair = torch.where(pair.isfinite().all(), pair, 0.0)
            key = prefix + name
            self._sums[key] = self._sums[key] + pair if key in self._sums else pair

    def reduce(self, ranks: Ranks) -> dict[str, tuple[float, float]]:
        """Maps a name to (sum, count) over all ranks, and forgets them. Costs one sum over ranks and one
        read. Every rank calls it, and has added the same names."""
        names = sorted(self._sums)
        if not names:
            return {}
        table = torch.stack([self._sums[name] for name in names])
        self._sums = {}
        return {
            name: (total, count)
            for name, (total, count) in zip(names, ranks.all_reduce(table).tolist(), strict=True)
        }


class TallySums:
    """Adds tallies by name: whole numbers exactly, others in float64. Concatenates rows: whole numbers as
    int64, other tensors as float32."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, list[Any]] = {}

    def add(self, tallies: Tallies) -> None:
        """Adds the tallies. The host does not wait for the device."""
        for name, tally in tallies.items():
            if not isinstance(tally, Rows):
                tensor = tally.detach().to(torch.float64 if tally.is_floating_point() else torch.int64)
                self._sums[name] = self._sums[name] + tensor if name in self._sums else tensor
                continue
            values = tally.values
            if isinstance(values, Tensor):
                values = values.detach().to(torch.float32 if values.is_floating_point() else torch.int64)
            self._rows.setdefault(name, []).append(values)

    def reduce(self, ranks: Ranks) -> Tallies:
        """Sums and rows of all ranks, on the CPU; tuples of rows become a list of their values as JSON gives
        them back. Every rank calls it; ranks that added nothing learn names and shapes from the first that
        did.

        Costs one sum over ranks for each dtype of sums, and two for each name of rows.
        """
        sums = {name: [tensor.is_floating_point(), *tensor.shape] for name, tensor in self._sums.items()}
        rows = {name: _row_layout(parts[0]) for name, parts in self._rows.items()}
        # any rank, also rank 0, has none if all of its samples were bad
        layouts = joined_json(ranks, [[sums, rows]] if sums or rows else [])
        if not layouts:
            return {}
        sums, rows = layouts[0]
        return self._added(ranks, sums) | {
            name: self._joined(ranks, name, layout) for name, layout in rows.items()
        }

    def _added(self, ranks: Ranks, layout: Mapping[str, Any]) -> Tallies:
        totals: Tallies = {}
        for dtype in (torch.int64, torch.float64):
            shapes = {
                name: shape
                for name, (floating, *shape) in layout.items()
                if floating == dtype.is_floating_point
            }
            if not shapes:
                continue
            parts = [
                self._sums.get(name, torch.zeros(shape, dtype=dtype, device=ranks.device))
                for name, shape in shapes.items()
            ]
            flat = ranks.all_reduce(torch.cat([part.flatten() for part in parts])).cpu()
            pieces = flat.split([part.numel() for part in parts])
            totals |= {
                name: piece.reshape(shape)
                for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
            }
        return totals

    def _joined(self, ranks: Ranks, name: str, layout: Sequence[Any] | None) -> Any:
        parts = self._rows.get(name, [])
        if layout is None:
            return joined_json(ranks, [value for part in parts for value in part])
        floating, *shape = layout
        empty = torch.zeros(0, *shape, dtype=torch.float32 if floating else torch.int64, device=ranks.device)
        return joined(ranks, torch.cat([empty, *parts]))


def _row_layout(values: Any) -> list[Any] | None:
    """[whether the numbers have fractions, *shape of a row] of a tensor; None for a tuple."""
    return [values.is_floating_point(), *values.shape[1:]] if isinstance(values, Tensor) else None


def mean(pair: tuple[float, float]) -> float:
    total, count = pair
    return total / count if count else float("nan")
