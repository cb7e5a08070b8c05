"""What the micro-batches of a step move before the step is done, as it was after the step before.

Parameters, moments and averages are not among it: they move when the step is done, and gradients are made
anew.
"""

import copy

import torch

from pipeline.rng import rng_state, set_rng_state
from pipeline.train.setup import Run
from pipeline.train.statistics import RunningStatistics


class Between:
    """The global generators, positions of the streams, counts of samples, and running statistics. Asks the
    device nothing."""

    def __init__(self, run: Run):
        self._rng = rng_state()
        self._streams = {name: stream.state_dict() for name, stream in run.streams.items()}
        self._samples = copy.copy(run.progress.samples)
        self.statistics = RunningStatistics(run.engine.module)

    def restore(self, run: Run) -> None:
        """So that what is saved now is continued exactly. What the streams have open goes on from where it
        is."""
        set_rng_state(self._rng)
        for name, stream in run.streams.items():
            stream.load_state_dict(self._streams[name])
        run.progress.samples = self._samples
        self.statistics.restore(torch.ones((), dtype=torch.bool, device=run.engine.device))
