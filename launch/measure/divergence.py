"""How far the predictions of a merged model are from those of the unmerged one, while both are evaluated.

B images, K outcomes of a distribution.
"""

import torch
from torch import Tensor

from launch.measure.points import DIVERGENCE
from pipeline.interfaces import Batch, Encode, LogProbs, Tallies, Task, TaskOutput
from pipeline.objectives.distill import gaps as divergences
from pipeline.token_state import BackboneOutput

COUNT = "divergence_of"
"""The tally that counts distributions; the sum of their divergences is DIVERGENCE."""


class Remembered:
    """An `Encode` that keeps the output of its first call: of all images or windows at the first scale."""

    def __init__(self, encode: Encode):
        self._encode = encode
        self.first: BackboneOutput | None = None

    def __call__(self, images: Tensor) -> BackboneOutput:
        output = self._encode(images)
        if self.first is None:
            self.first = output
        return output


def distributions(task: Task, output: BackboneOutput | None, batch: Batch) -> LogProbs | None:
    """What a task predicts of a batch; None where it predicts no distributions. output: of the batch's
    images, or of all their windows."""
    if output is None:
        return None
    try:
        predictions = task.predictions(output, batch)
        return task.log_probs(TaskOutput(torch.zeros(()), predictions=predictions), batch)
    except NotImplementedError:
        return None


def gap(own: LogProbs | None, whole: LogProbs | None) -> Tallies:
    """Tallies of the divergence of the distributions that count from the unmerged model's, in nats; empty
    where there are none."""
    if own is None or whole is None:
        return {}
    gaps = divergences(own, whole).double()
    if own.counts is None:
        return {DIVERGENCE: gaps.sum(), COUNT: torch.full((), gaps.numel(), device=gaps.device)}
    return {DIVERGENCE: torch.where(own.counts, gaps, 0.0).sum(), COUNT: own.counts.sum()}


def mean_gap(tallies: Tallies) -> dict[str, float]:
    """The score of such tallies, which are taken out of the others."""
    total, count = tallies.pop(DIVERGENCE, None), tallies.pop(COUNT, None)
    return {DIVERGENCE: float(total) / int(count)} if total is not None and int(count) else {}
