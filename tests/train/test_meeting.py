"""Ranks go on together, or none does."""

import pytest
from ranks import ONE_RANK, together

from pipeline.config.task_schema import MAX_WAIT, DataConfig
from pipeline.engine.connect import ALONE
from pipeline.errors import ConfigError, OutageError, SampleError, StopAsked, StorageError
from pipeline.train.meeting import Meeting


class Stop:
    """A request to stop that came, or not."""

    def __init__(self, asked: bool):
        self.asked = asked

    def heard(self) -> bool:
        return self.asked


def batches(rank, failing):
    """One batch, then the end, or the error of the rank that has one."""
    yield rank
    if rank in failing:
        raise failing[rank]


def ended(rank, ranks, failing, asked=()):
    meeting = Meeting(ranks, Stop(rank in asked))
    own = batches(rank, failing)
    try:
        return [meeting.next(own, "counts") for _ in range(2)]
    except (SampleError, StorageError, StopAsked) as err:
        return err


def test_all_have_their_batch_or_none():
    assert together(3, lambda rank, ranks: ended(rank, ranks, {})) == [[0, None], [1, None], [2, None]]
    assert ended(0, ONE_RANK, {}) == [0, None]


@pytest.mark.parametrize("kind", [OutageError, SampleError])
def test_what_one_rank_cannot_read_ends_all(kind):
    """Also where another one was asked to stop: the error is told."""
    error = kind("gone")
    found = together(3, lambda rank, ranks: ended(rank, ranks, {1: error, 2: StopAsked("asked")}))
    assert found[1] is error
    for other in (found[0], found[2]):
        assert isinstance(other, StorageError) and "rank 1 could not read its data" in str(other)


def test_a_request_to_one_rank_stops_all_at_the_same_batch():
    found = together(3, lambda rank, ranks: ended(rank, ranks, {}, asked=(2,)))
    assert all(isinstance(one, StopAsked) for one in found)
    assert isinstance(ended(0, ONE_RANK, {}, asked=(0,)), StopAsked)


def test_the_longest_wait_for_a_batch_is_shorter_than_that_of_the_other_ranks():
    assert MAX_WAIT + 60 < ALONE
    with pytest.raises(ConfigError, match="data.max_wait is 2000"):
        DataConfig(schema="classification", max_wait=2000.0)
