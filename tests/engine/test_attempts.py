"""Ranks of one attempt meet in a store that has what earlier attempts wrote, whoever came to those."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch import distributed

from pipeline.engine.attempts import own_attempt

SIZE = 4


@pytest.fixture
def store():
    return distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60)
    )


def attempt(store, ranks, seconds=60.0):
    """What each rank gets: its part of the store, or the error."""

    def come(rank):
        try:
            return own_attempt(store.clone(), rank, SIZE, seconds)
        except TimeoutError as err:
            return err

    with ThreadPoolExecutor(SIZE) as pool:
        return list(pool.map(come, ranks))


def met(stores):
    """Whether each of them sees what every other one writes, and nothing else."""
    seen = [one.add("met", 1) for one in stores]
    return sorted(seen) == list(range(1, SIZE + 1))


@pytest.mark.parametrize("came", [(), (0,), (1, 3), (0, 1, 2), (0, 1, 2, 3)])
def test_ranks_meet_those_of_their_attempt_whoever_came_to_the_earlier_ones(store, came):
    for _ in range(2):
        attempt(store, came, seconds=0.0 if len(came) < SIZE else 60.0)
    for _ in range(2):
        assert met(attempt(store, range(SIZE)))


def test_a_rank_that_begins_before_rank_0_waits_for_it(store):
    """What was complete before is not its attempt, although the store says that all were there."""
    assert met(attempt(store, range(SIZE)))
    with ThreadPoolExecutor(SIZE) as pool:
        early = [pool.submit(own_attempt, store.clone(), rank, SIZE, 60.0) for rank in (1, 2, 3)]
        while not store.check([f"1/{rank}" for rank in (1, 2, 3)]) or store.add("1/3", 0) < 2:
            assert not any(one.done() for one in early)
        stores = [own_attempt(store.clone(), 0, SIZE, 60.0), *(one.result() for one in early)]
    assert met(stores)


def test_a_rank_that_comes_again_while_rank_0_waits_is_met_in_the_next_attempt(store):
    """Its agent has started it again alone."""
    with ThreadPoolExecutor(SIZE) as pool:
        first = pool.submit(own_attempt, store.clone(), 0, SIZE, 60.0)
        while not store.check(["1/0"]):
            pass
        with pytest.raises(TimeoutError):
            own_attempt(store.clone(), 2, SIZE, 0.0)
        others = [pool.submit(own_attempt, store.clone(), rank, SIZE, 60.0) for rank in (1, 2, 3)]
        assert met([one.result() for one in (first, *others)])


def test_a_rank_that_does_not_come_is_waited_for_until_the_deadline(store):
    assert all(isinstance(one, TimeoutError) for one in attempt(store, (0, 2, 3), seconds=0.2))
