"""Sums that stay on the device until somebody asks for them."""

import json

import torch
from torch import Tensor

from pipeline.interfaces import Engine, Sums, Tallies
from pipeline.train.collective import from_rank0


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

    def reduce(self, engine: Engine) -> dict[str, tuple[float, float]]:
        """(sum, count) over all ranks by name, and empties this. One sum over ranks and one read, called by every rank, all of which
        have added the same names."""
        names = sorted(self._sums)
        if not names:
            return {}
        table = torch.stack([self._sums[name] for name in names])
        self._sums = {}
        return {name: (total, count) for name, (total, count) in zip(names, engine.all_reduce(table).tolist(), strict=True)}


class TallySums:
    """Adds tallies by name: whole numbers exactly, others in float64."""

    def __init__(self) -> None:
        self._sums: Tallies = {}

    def add(self, tallies: Tallies) -> None:
        """Asks the device nothing."""
        for name, tensor in tallies.items():
            tensor = tensor.detach().to(torch.float64 if tensor.is_floating_point() else torch.int64)
            self._sums[name] = self._sums[name] + tensor if name in self._sums else tensor

    def reduce(self, engine: Engine) -> Tallies:
        """The sums over all ranks, on the CPU. Called by every rank; those that added nothing learn names and shapes from rank 0.

        One sum over ranks per dtype.
        """
        own = {name: (tensor.is_floating_point(), list(tensor.shape)) for name, tensor in self._sums.items()}
        layout = json.loads(from_rank0(engine, json.dumps(own)))  # rank 0 has a batch if any rank has
        totals: Tallies = {}
        for dtype in (torch.int64, torch.float64):
            shapes = {name: shape for name, (floating, shape) in layout.items() if floating == dtype.is_floating_point}
            if not shapes:
                continue
            parts = [self._sums.get(name, torch.zeros(shape, dtype=dtype, device=engine.device)) for name, shape in shapes.items()]
            flat = engine.all_reduce(torch.cat([part.flatten() for part in parts])).cpu()
            pieces = flat.split([part.numel() for part in parts])
            totals |= {name: piece.reshape(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}
        return totals


def mean(pair: tuple[float, float]) -> float:
    total, count = pair
    return total / count if count else float("nan")
