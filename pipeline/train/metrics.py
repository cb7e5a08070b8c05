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
        self._tables: dict[tuple[str, ...], Tensor] = {}
        """Names that came together -> float64 [2, names]: their sums and counts. So a micro-batch costs a few
        kernels, however many figures it has."""
        self._only_finite = only_finite

    def add(self, sums: Sums, prefix: str = "") -> None:
        """Adds the sums under prefix + name. The host does not wait for the device."""
        if not sums:
            return
        names = tuple(prefix + name for name in sums)
        totals = [total for total, _ in sums.values()]
        counts = [count for _, count in sums.values()]
        device = totals[0].device
        table = torch.stack([_column(totals, device), _column(counts, device)])
        if self._only_finite:
            table = torch.where(table.isfinite().all(dim=0), table, 0.0)
        self._tables[names] = self._tables[names] + table if names in self._tables else table

    def reduce(self, ranks: Ranks) -> dict[str, tuple[float, float]]:
        """Maps a name to (sum, count) over all ranks, and forgets them. Costs one sum over ranks and one
        read. Every rank calls it, and has added the same names."""
        pairs: dict[str, Tensor] = {}
        for together, table in self._tables.items():
            for name, pair in zip(together, table.unbind(dim=1), strict=True):
                pairs[name] = pairs[name] + pair if name in pairs else pair
        self._tables = {}
        names = sorted(pairs)
        if not names:
            return {}
        table = torch.stack([pairs[name] for name in names])
        return {
            name: (total, count)
            for name, (total, count) in zip(names, ranks.all_reduce(table).tolist(), strict=True)
        }


def _column(numbers: Sequence[Tensor | float], device: torch.device) -> Tensor:
    """float64 [N]: the N numbers, of which tensors are scalars."""
    # filled in by the device, as the host would wait for a copy
    filled = {
        number: torch.full((), number, dtype=torch.float64, device=device)
        for number in {number for number in numbers if not isinstance(number, Tensor)}
    }
    scalars = [number if isinstance(number, Tensor) else filled[number] for number in numbers]
    if len({(scalar.dtype, scalar.device) for scalar in scalars}) > 1:
        scalars = [scalar.to(device, torch.float64) for scalar in scalars]
    return torch.stack(scalars).double()


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
