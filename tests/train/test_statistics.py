"""A skipped step puts running statistics back; a step that is not skipped leaves them."""

import pytest
import torch
from torch import nn

from pipeline.train.statistics import RunningStatistics


@pytest.mark.parametrize("skipped", [True, False])
def test_statistics_are_restored_where_the_step_is_skipped(skipped):
    norms = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(5))
    before, statistics = [buffer.clone() for buffer in norms.buffers()], RunningStatistics(norms)
    for norm, width in zip(norms, (3, 5), strict=True):
        norm(torch.randn(4, width))
    statistics.restore(torch.tensor(skipped))
    for buffer, old in zip(norms.buffers(), before, strict=True):
        if buffer.is_floating_point():
            assert torch.equal(buffer, old) == skipped


@pytest.mark.parametrize("module", [nn.Linear(2, 2), nn.Module()], ids=["no buffers", "nothing at all"])
def test_without_statistics_there_is_no_tensor_of_another_device(module):
    """The flag is on the device of the run, and nothing of the module tells where that is."""
    RunningStatistics(module).restore(torch.ones((), dtype=torch.bool, device="meta"))
