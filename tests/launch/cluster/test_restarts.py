"""A run starts again after a crash, as often as it may, and never after a mistake or a request to stop."""

import os
import signal

import pytest

from launch.cluster import supervise
from launch.cluster.preflight import HostsNotReady
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
            status = left.pop(0)
            if isinstance(status, Exception):
                raise status
            return status

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
    assert starts([SIGKILL, 1], 5, stop_in=1) == (1, [False, True])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_rank_that_a_request_to_stop_killed_was_stopped_as_asked(starts, number):
    """It came before the rank could hear it."""
    assert starts([128 + number], 5, stop_in=0) == (0, [False])
    assert starts([128 + number], 0) == (128 + number, [False])


def test_a_host_that_reboots_is_waited_for(starts, monkeypatch):
    away = HostsNotReady("node2: Connection refused")
    assert starts([255, away, away, away, 0], 1) == (0, [False, True, True, True, True])
    monkeypatch.setattr(supervise, "COMES_BACK", -1.0)
    with pytest.raises(HostsNotReady):
        starts([255, away, 0], 1)


def test_hosts_that_are_not_ready_for_the_first_start_are_the_users(starts):
    with pytest.raises(HostsNotReady):
        starts([HostsNotReady("node2: Connection refused"), 0], 3)


def test_signals_are_as_before_afterwards(starts):
    before = signal.getsignal(signal.SIGTERM)
    starts([143], 0, stop_in=0)
    assert signal.getsignal(signal.SIGTERM) == before
