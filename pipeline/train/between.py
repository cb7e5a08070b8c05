"""The state of a run between two steps, to go back to when a step cannot be finished.

It holds what the micro-batches of a step move and a checkpoint saves. Parameters, moments and averages do not
belong to it: they move when the step is done. Nor do gradients, which no checkpoint holds, and generators,
which every step seeds.
"""

import copy

import torch

from pipeline.train.run import Run
from pipeline.train.statistics import RunningStatistics


class Between:
    """Positions of the streams, counts of samples, and running statistics. The host never waits for the
    device."""

    def __init__(self, run: Run):
        self._streams = {name: stream.state_dict() for name, stream in run.streams.items()}
        self._samples = copy.copy(run.progress.samples)
        self.statistics = RunningStatistics(run.engine.module)

    def restore(self, run: Run) -> None:
        """Sets the run back to this state, so that a checkpoint saved now is continued exactly. Iterators of
        the streams that are open go on from where they are, and gradients stay in the engine."""
        for name, stream in run.streams.items():
            stream.load_state_dict(self._streams[name])
        run.progress.samples = self._samples
        self.statistics.restore(torch.ones((), dtype=torch.bool, device=run.engine.device))
