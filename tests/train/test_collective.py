"""What ranks agree on is what one would say that has all of it."""

import pytest
import torch
from ranks import ONE_RANK, together
from torch import nn

from pipeline.train.collective import anywhere, average_buffers, from_rank0, joined, joined_json, maximum

TEXTS = ["", "one", "\u2028 \n\0 \u00e9 and more"]


def module(mean: float, batches: int) -> nn.Module:
    """A norm's running statistics, which differ by rank, beside a constant, which does not."""
    norm = nn.BatchNorm1d(2)
    norm.register_buffer("constant", torch.tensor([0.1, 1e-30, 1 / 3]))
    norm.running_mean.fill_(mean)
    norm.num_batches_tracked.fill_(batches)
    return norm


@pytest.mark.parametrize("text", TEXTS)
def test_every_rank_has_the_text_of_the_first(text):
    texts = [text, "another", ""]
    assert together(3, lambda rank, ranks: from_rank0(ranks, texts[rank])) == [text] * 3
    assert from_rank0(ONE_RANK, text) == text


def test_values_of_all_ranks_are_joined_in_their_order():
    values = [TEXTS, [], [[1, None], {"a": 0.5}]]
    joined_ = [value for own in values for value in own]
    assert together(3, lambda rank, ranks: joined_json(ranks, values[rank])) == [joined_] * 3
    assert joined_json(ONE_RANK, joined_) == joined_


@pytest.mark.parametrize("sizes", [(2, 0, 5), (0, 0, 0), (1, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.uint8])
def test_rows_of_all_ranks_are_joined_in_their_order(sizes, dtype):
    whole = torch.arange(3 * sum(sizes)).reshape(-1, 3).to(dtype)
    parts = whole.split(sizes)
    for found in together(3, lambda rank, ranks: joined(ranks, parts[rank])):
        assert torch.equal(found, whole) and found.dtype == dtype
    assert torch.equal(joined(ONE_RANK, whole), whole)


def test_ranks_know_of_the_largest_and_of_any():
    assert together(3, lambda rank, ranks: maximum(ranks, [4, -2, 7][rank])) == [7] * 3
    assert together(3, lambda rank, ranks: maximum(ranks, -rank - 1)) == [-1] * 3
    assert together(2, lambda rank, ranks: anywhere(ranks, rank == 1)) == [True] * 2
    assert together(2, lambda rank, ranks: anywhere(ranks, False)) == [False] * 2


def test_running_statistics_become_the_mean_over_ranks_and_constants_stay():
    def averaged(rank, ranks):
        own = module([1.0, 2.0, 6.0][rank], 7)
        average_buffers(ranks, own)
        return own, ranks.exchanges

    for own, exchanges in together(3, averaged):
        assert torch.equal(own.running_mean, torch.full((2,), 3.0))
        assert torch.equal(own.running_var, torch.ones(2)) and int(own.num_batches_tracked) == 7
        assert torch.equal(own.constant, torch.tensor([0.1, 1e-30, 1 / 3])) and exchanges == 1


def test_where_there_are_no_buffers_nothing_is_exchanged():
    def exchanges(rank, ranks):
        average_buffers(ranks, nn.Linear(2, 2))
        return ranks.exchanges

    assert together(2, exchanges) == [0, 0]
