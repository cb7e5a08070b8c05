"""The thread that waits for data workers is not in torch's code when the process ends."""

import subprocess
import sys
import time
from collections.abc import Iterator
from threading import Event
from typing import Any

from pipeline.data.stalls import NextInThread

ENDS_WITHIN_A_BATCH = """
import sys, time
from pathlib import Path
from pipeline.data.stalls import NextInThread

def batches():
    yield 0
    time.sleep(0.3)
    Path(sys.argv[1]).touch()
    yield 1

ahead = NextInThread(batches()).__enter__()
ahead.next(60)
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


def test_a_process_ends_behind_the_batch_under_way(tmp_path):
    """Also where nobody closed the stream, as in a loop of one's own."""
    done = tmp_path / "done"
    subprocess.run([sys.executable, "-c", ENDS_WITHIN_A_BATCH, str(done)], check=True)
    assert done.exists()
