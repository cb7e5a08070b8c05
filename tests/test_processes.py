"""A process that is done, or has failed, is gone soon, with the status that it had."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HANGS = """
import sys, threading, time
from pipeline import processes

def never_ends():
    time.sleep(1000)

def main():
    threading.Thread(target=never_ends).start()
    if sys.argv[1] == "raises":
        raise ZeroDivisionError
    return int(sys.argv[1])

processes.EXIT_WITHIN = 0.5
sys.exit(processes.soon_gone(main))
"""
OPENS = """
import threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
"""


@pytest.mark.parametrize(("what", "status"), [("0", 0), ("2", 2), ("raises", 1)])
def test_an_exit_that_hangs_says_where_and_keeps_its_status(what, status):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", HANGS, what], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == status and "in never_ends" in done.stderr


@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_nothing_that_a_killed_process_has_started_outlives_it(start):
    """All of it, a server too, can write to the output of that process, which ends with the last of them."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests/helpers/killed_starter.py"), start]
    done = subprocess.run(command, env=env, capture_output=True, timeout=100)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", ["launch.cli", "launch.train", "launch.cluster.rank", "launch.cluster.mpi_rank"]
)
def test_all_that_train_are_gone_with_something_open(module, tmp_path):
    """A thread that a user's module has started; the config is not there."""
    (tmp_path / "opens.py").write_text(OPENS)
    words = {"launch.cli": ["train"], "launch.cluster.mpi_rank": ["127.0.0.1", "1234"]}.get(module, [])
    env = os.environ | {
        "PYTHONPATH": f"{ROOT}:{tmp_path}",
        "PMI_RANK": "0",
        "PMI_SIZE": "1",
        "MPI_LOCALRANKID": "0",
    }
    command = [sys.executable, "-P", "-m", module, *words, "--import", "opens", "--config", "none.json"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "none.json" in done.stderr, done.stderr
