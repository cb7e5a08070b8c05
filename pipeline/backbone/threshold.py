"""The threshold of a block, for policies that mask patches in training, and the share of patches that passes
it. The counts that are learned become a schedule, as inference removes the same number from each image."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.merging.schedule import mergeable
from pipeline.parts import METRIC

KEPT = "kept"
"""The reduction that thresholds keep, as an option of commands."""
UNKNOWN = -1.0
"""The share of a block whose threshold no step has used."""
MOMENTUM = 0.99
"""Of the mean share, over micro-batches."""


class Threshold(nn.Module):
    """One number for all tasks and images, and how many patches it lets pass. Keys:
    `blocks.N.metric.{threshold,kept}`.

    start: the number before training, in the unit of the policy's scores.
    """

    part_kind = METRIC
    kept: Tensor
    """[1]: the mean share of an image's patches that are left behind the block, over the last hundred
    micro-batches or so and all ranks; UNKNOWN before the first."""

    def __init__(self, start: float):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor([start], dtype=torch.float32))
        self.register_buffer("kept", torch.tensor([UNKNOWN], dtype=torch.float32))

    def forward(self, tokens: Tensor, task: str | None = None) -> Tensor:
        """[1]: the threshold, whatever the tokens and the task are. A copy, as an engine that divides the
        weights takes the parameter itself back behind the call."""
        return self.threshold.clone()

    @torch.no_grad()
    def note(self, share: Tensor) -> None:
        """Adds the share of the patches that a micro-batch kept, a scalar and the same on every rank, to the
        mean."""
        mean = torch.where(self.kept < 0, share, self.kept * MOMENTUM + share * (1 - MOMENTUM))
        self.kept.copy_(mean)


def kept_reduction(blocks: Sequence[nn.Module], patches: int) -> list[int]:
    """r of each block, so that as many of `patches` patches are left as its threshold kept on average in
    training. Where a block can remove fewer, the next one with a threshold that was used removes more.
    Raises ConfigError where none was."""
    thresholds = [getattr(block, "metric", None) for block in blocks]
    shares = [float(one.kept) if isinstance(one, Threshold) else UNKNOWN for one in thresholds]
    if max(shares) < 0:
        raise ConfigError(
            f"reduction '{KEPT}' is what thresholds kept in training, and this model has none that were "
            "trained; give a run of policy 'as_vit' with objective 'budget', or another reduction"
        )
    schedule, left = [], patches
    for share in shares:
        wanted = left if share < 0 else round(share * patches)
        schedule.append(max(0, min(left - wanted, mergeable(left, 0))))
        left -= schedule[-1]
    return schedule
