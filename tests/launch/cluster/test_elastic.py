"""torch's elastic agent as we start it: statuses, mistakes and requests to stop."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from agents import ROOT

from launch.cluster.hosts import Host
from launch.cluster.job import HERE, Job, elastic_by_host

SCRIPT = """
import os, pathlib, signal, sys, time
marks = pathlib.Path(os.environ["DTEM_MARKS"])
starts = pathlib.Path(sys.argv[1])
number = len(list(starts.iterdir()))
(starts / str(number)).touch()
if sys.argv[2] == "crash": os._exit(7 if number == 0 else 0)
if sys.argv[2] == "crash always": os._exit(7)
if sys.argv[2] == "killed": os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "mistake": (marks / "mistake").touch(); os._exit(2)
signal.signal(signal.SIGUSR1, lambda *_: os._exit(0))
(marks / f"pid-{os.getpid()}").touch()
if sys.argv[2] == "fails when asked": signal.signal(signal.SIGUSR1, lambda *_: os._exit(7))
if sys.argv[2] == "fails when asked" and (marks / "stop").exists(): os._exit(0)
(starts / "waits").touch()
time.sleep(1000)
"""


@pytest.fixture
def start(tmp_path):
    """Starts the agent of one host, with one rank and one restart."""
    script, starts = tmp_path / "rank.py", tmp_path / "starts"
    script.write_text(SCRIPT)
    starts.mkdir()
    job = Job(train=(), folder=str(tmp_path), hosts=(Host(HERE, (0,)),), restarts=1, master_port=0)
    (work,) = elastic_by_host(job, {})
    options = work.argv[: work.argv.index("-m", 5)]

    def run(what, *more):
        env = {**os.environ, **work.env, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen([*options, *more, str(script), str(starts), what], env=env), starts

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "status", "number"),
    [("crash", 0, 2), ("crash always", 7, 2), ("killed", 128 + signal.SIGKILL, 2), ("mistake", 2, 2)],
)
def test_its_status_is_that_of_the_rank(start, what, status, number):
    agent, starts = start(what)
    assert agent.wait(600) == status
    assert len(list(starts.iterdir())) == number


def until_it_waits(agent: subprocess.Popen, starts: Path) -> None:
    """Until the rank has begun, and waits to be asked."""
    end = time.monotonic() + 600
    while not (starts / "waits").exists():
        assert agent.poll() is None and time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_a_request_to_stop_reaches_the_rank_and_not_the_agent(start):
    agent, starts = start("wait")
    until_it_waits(agent, starts)
    agent.send_signal(signal.SIGUSR1)
    assert agent.wait(600) == 0
    assert len(list(starts.iterdir())) == 2


@pytest.mark.slow
def test_after_a_request_to_stop_nothing_trains_again(start):
    """The rank fails as it is asked; the one that the agent starts in its place finds the mark."""
    agent, starts = start("fails when asked")
    until_it_waits(agent, starts)
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(600) == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_an_agent_that_waits_for_another_host_ends_as_asked(start, number):
    agent, starts = start("wait", "--nnodes=2", "--rdzv-endpoint=127.0.0.1:0")
    process = psutil.Process(agent.pid)
    until = time.monotonic() + 600
    while not any(part.status == "LISTEN" for part in process.net_connections()):
        assert agent.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    agent.send_signal(number)
    assert agent.wait(600) == 0 and not list(starts.iterdir())
