from types import SimpleNamespace

import torch
from torch import Tensor, nn

from pipeline.train.collective import average_buffers


def module(mean: float, batches: int) -> nn.Module:
    """A norm's running statistics, which differ by rank, beside a constant, which does not."""
    norm = nn.BatchNorm1d(2)
    norm.register_buffer("constant", torch.tensor([0.1, 1e-30, 1 / 3]))
    norm.running_mean.fill_(mean)
    norm.num_batches_tracked.fill_(batches)
    return norm


def test_running_statistics_become_the_mean_over_ranks_and_constants_stay():
    ranks, calls = [module(1.0, 7), module(2.0, 7), module(6.0, 7)], []
    flat = [
        torch.cat([b.double().flatten() for b in rank.buffers() if b.is_floating_point()]) for rank in ranks
    ]

    def all_reduce(tensor: Tensor) -> Tensor:
        calls.append(tensor)
        return tensor + flat[1] + flat[2]

    average_buffers(SimpleNamespace(module=ranks[0], world_size=3, all_reduce=all_reduce))
    assert torch.equal(ranks[0].running_mean, torch.full((2,), 3.0)) and torch.equal(
        ranks[0].running_var, torch.ones(2)
    )
    assert (
        torch.equal(ranks[0].constant, torch.tensor([0.1, 1e-30, 1 / 3]))
        and int(ranks[0].num_batches_tracked) == 7
    )
    assert len(calls) == 1


def test_one_rank_or_no_buffers_exchange_nothing():
    def all_reduce(tensor: Tensor) -> Tensor:
        raise AssertionError("nothing is to be agreed on")

    average_buffers(SimpleNamespace(module=module(1.0, 1), world_size=1, all_reduce=all_reduce))
    average_buffers(SimpleNamespace(module=nn.Linear(2, 2), world_size=2, all_reduce=all_reduce))
