"""The thread that waits for data workers is not in torch's code when the process ends."""

import time
from collections.abc import Iterator
from threading import Event
from typing import Any

import pytest
from forks import Fork

from pipeline.data import stalls
from pipeline.data.stalls import NextInThread, WorkerNotes, patiently
from pipeline.errors import StopAsked, StorageError

BATCHES = """
import sys, time
from pathlib import Path
from pipeline.data.stalls import NextInThread, StopAsked, WorkerNotes, patiently

def batches():
    yield 0
    time.sleep(0.5)
    Path(sys.argv[1]).touch()
    yield 1
"""
ENDS_WITHIN_A_BATCH = f"""{BATCHES}
ahead = NextInThread(batches()).__enter__()
ahead.next(60)
"""
ENDS_A_WAIT = f"""{BATCHES}
waiting = patiently(batches(), WorkerNotes(1), 1.0, lambda: True)
next(waiting)
try:
    next(waiting)
except StopAsked:
    pass
"""


def test_leaving_waits_for_the_batch_under_way():
    going, done = Event(), Event()

    def batches() -> Iterator[Any]:
        yield 0
        going.set()
        time.sleep(0.2)
        done.set()
        yield 1

    with NextInThread(batches()) as ahead:
        assert ahead.next(60) == 0
        assert going.wait(60)
    assert done.is_set()


@pytest.mark.parametrize(("stops", "limit", "error"), [(True, 300.0, StopAsked), (False, 0.5, StorageError)])
def test_a_wait_that_is_broken_off_ends_before_its_batch(monkeypatch, stops, limit, error):
    monkeypatch.setattr(stalls, "LEAVE_WITHIN", 90.0)
    go, done = Event(), Event()

    def batches() -> Iterator[Any]:
        go.wait(30)
        done.set()
        yield 0

    with pytest.raises(error):
        next(patiently(batches(), WorkerNotes(1), limit, lambda: stops))
    assert not done.is_set()
    go.set()


@pytest.mark.parametrize("script", [ENDS_WITHIN_A_BATCH, ENDS_A_WAIT])
def test_a_process_ends_behind_the_batch_under_way(tmp_path, script):
    """Also where nobody closed the stream, as in a loop of one's own."""
    done = tmp_path / "done"
    assert Fork("-c", script, done).wait() == 0
    assert done.exists()
