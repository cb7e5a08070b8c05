"""What a run knows of each of its training samples: its loss under each of two networks, and how likely its
label is right by that. It is data of the run, the same on all ranks, and is saved with it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.errors import SampleError
from pipeline.ranks import Ranks

UNKNOWN = -1.0
"""In place of a loss or a probability: checkpoints hold no NaN."""
ITERATIONS = 10
SMALLEST = 5e-4
"""Added to the variances."""


class SampleLosses:
    """losses, clean: float32 [2, N] on the device: of each network and sample the loss that was seen last,
    and the probability that the label is right, by the losses of that network; UNKNOWN where there is
    none."""

    def __init__(self, keys: Sequence[str], device: torch.device):
        """Raises SampleError where two samples have one key."""
        self._rows = {key: row for row, key in enumerate(keys)}
        if len(self._rows) < len(keys):
            twice = next(key for row, key in enumerate(keys) if self._rows[key] != row)
            raise SampleError(
                f"two samples have the key '{twice}', and losses are noted by the key; make a set whose keys "
                "differ (dtem shards merge SET... OUT --prefix, for sets that have keys in common)"
            )
        self.losses = torch.full((2, len(self._rows)), UNKNOWN, device=device)
        self.clean = self.losses.clone()

    def rows(self, keys: Sequence[str]) -> Tensor:
        """int64 [B] on the device: the places of these samples."""
        found = torch.tensor([self._rows[key] for key in keys])
        return found.to(self.losses.device, non_blocking=True)

    def note(self, ranks: Ranks, keys: Sequence[str], losses: Tensor) -> None:
        """Notes losses [2, B] of this rank's samples, and those of the other ranks. Losses that are not
        finite are left out. Of a sample that is there twice the larger loss is noted, on all ranks. A
        collective."""
        own = torch.cat([self.rows(keys)[None].double(), losses.double()])
        found = ranks.gather(own).transpose(0, 1).flatten(1)
        rows = found[0].long().expand(2, -1)
        new = found[1:].float()
        new = torch.where(new.isfinite(), new, -torch.inf)
        largest = torch.full_like(self.losses, -torch.inf).scatter_reduce(1, rows, new, "amax")
        self.losses.copy_(torch.where(largest.isfinite(), largest, self.losses))

    def judge(self) -> None:
        """Says anew which labels are right."""
        self.clean.copy_(torch.stack([low_component(own) for own in self.losses]))


def low_component(losses: Tensor) -> Tensor:
    """[N]: the probability that a loss is of the lower of two normal distributions, to which the losses are
    fitted by expectation maximisation. UNKNOWN where the loss is. The host does not wait."""
    known = losses != UNKNOWN
    low = torch.where(known, losses, torch.inf).min()
    high = torch.where(known, losses, -torch.inf).max()
    values = torch.where(known, (losses - low) / (high - low).clamp(min=1e-12), 0.0).double()
    weight = known.double()
    part = torch.stack([1 - values, values], dim=1)
    # which of the two is nearer, from the lowest and the highest value on
    mean = values.new_tensor([0.0, 1.0])
    for _ in range(ITERATIONS):
        nearer = (values[:, None] - mean).abs()
        second = (nearer[:, 1] < nearer[:, 0]).double()
        part = torch.stack([1 - second, second], dim=1) * weight[:, None]
        mean = (part * values[:, None]).sum(0) / part.sum(0).clamp(min=1e-12)
    for _ in range(ITERATIONS):
        count = part.sum(0).clamp(min=1e-12)
        mean = (part * values[:, None]).sum(0) / count
        variance = (part * (values[:, None] - mean) ** 2).sum(0) / count + SMALLEST
        logs = (count / count.sum()).log() - variance.log() / 2 - (values[:, None] - mean) ** 2 / variance / 2
        part = logs.softmax(dim=1) * weight[:, None]
    chosen = torch.where(mean[0] <= mean[1], part[:, 0], part[:, 1])
    return torch.where(known, chosen, UNKNOWN).float()
