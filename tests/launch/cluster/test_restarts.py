"""A run starts again after a crash, as often as it may, and never after a mistake or a request to stop."""

import os
import signal

import pytest

from launch.cluster import supervise
from launch.cluster.supervise import with_restarts

SIGKILL = 128 + signal.SIGKILL


@pytest.fixture
def starts(monkeypatch):
    """Calls `with_restarts` on starts that end with these statuses. Returns its status, and what each start
    was told."""
    monkeypatch.setattr(supervise, "PAUSE", 0.0)

    def run(statuses, restarts, *, stop_in=None):
        left, told = list(statuses), []

        def start(again, signals):
            if stop_in == len(told):
                with signals:
                    os.kill(os.getpid(), signal.SIGTERM)
            told.append(again)
            return left.pop(0)

        return with_restarts(start, restarts), told

    return run


@pytest.mark.parametrize(
    ("statuses", "restarts", "status", "told"),
    [
        ([0], 3, 0, [False]),
        ([SIGKILL, 1, 0], 3, 0, [False, True, True]),
        ([1, 1, 1], 2, 1, [False, True, True]),
        ([SIGKILL], 0, SIGKILL, [False]),
        ([2], 3, 2, [False]),
        ([1, 2], 3, 2, [False, True]),
    ],
)
def test_as_often_as_it_may(starts, statuses, restarts, status, told):
    assert starts(statuses, restarts) == (status, told)


def test_not_after_a_request_to_stop(starts):
    assert starts([SIGKILL, 143], 5, stop_in=1) == (143, [False, True])


def test_signals_are_as_before_afterwards(starts):
    before = signal.getsignal(signal.SIGTERM)
    starts([143], 0, stop_in=0)
    assert signal.getsignal(signal.SIGTERM) == before
