"""What hosts print is passed on whole, and an agent that hangs is noticed although its ssh goes on."""

import os
import signal
import threading
import time
from contextlib import suppress

import psutil
import pytest
from agents import STAYS, fake_ssh, python, start_of, work

from launch.cluster import pulse, supervise
from launch.cluster.pulse import PULSE, Hearing
from launch.cluster.supervise import Signals, run_hosts

PRINTS = "import sys\nfor n in range(5000): print(sys.argv[1], n, 'ü' * 20)\nprint('no line end', end='')"


def test_what_hosts_print_is_passed_on_whole_and_without_pulses(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")
    ssh = fake_ssh(tmp_path) / "ssh"
    works = [work(name, tmp_path, python(PRINTS, name), beats=True) for name in ("a", "b")]
    assert run_hosts([start_of(one, tmp_path, ssh) for one in works], Signals()) == 0
    said = capfd.readouterr().out
    assert "\0" not in said and said.count("no line end") == 2
    for name in ("a", "b"):
        assert said.count(f"{name} ") >= 5000 and f"{name} 4999 {'ü' * 20}" in said


def test_an_agent_that_is_stopped_fails_the_launch(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(pulse, "STILL", 6.0)
    monkeypatch.setattr(supervise, "STILL", 6.0)
    monkeypatch.setattr(supervise, "LEAVES", 0.5)
    stopped = []

    def stop() -> None:
        """Once the ranks of both are there: the agent whose rank is 1."""
        while len(files := list(tmp_path.glob("[0-9]*.[01]"))) < 4:
            time.sleep(0.05)
        rank = next(int(path.stem) for path in files if path.suffix == ".1")
        for agent in psutil.Process(rank).parents():
            if "launch.cluster.host_agent" in agent.cmdline():
                agent.suspend()
                stopped.append(agent)

    threading.Thread(target=stop, daemon=True).start()
    ssh = fake_ssh(tmp_path) / "ssh"
    works = [
        work(f"host{rank}", tmp_path, python(STAYS, str(tmp_path)), ranks=(rank,), beats=True)
        for rank in (0, 1)
    ]
    below = psutil.Process()
    assert run_hosts([start_of(one, tmp_path, ssh) for one in works], Signals()) == 1
    assert "host1: no word from the agent for 6 s" in (said := capfd.readouterr().err)
    assert "host0: no word" not in said
    assert len(stopped) == 1
    for agent in stopped:  # it goes on, and sees that the launcher is gone
        with suppress(psutil.NoSuchProcess):
            agent.resume()
    assert not psutil.wait_procs(below.children(recursive=True), timeout=60)[1]


@pytest.fixture
def pipe():
    read, write = os.pipe()
    yield open(read, "rb", buffering=0), write
    os.close(write)


def test_only_an_agent_that_says_nothing_is_still(pipe, monkeypatch):
    stream, write = pipe
    hearing = Hearing(stream)
    assert not hearing.still()
    monkeypatch.setattr(pulse, "STILL", -1.0)
    assert hearing.still()
    monkeypatch.setattr(pulse, "STILL", 1000.0)
    os.write(write, PULSE)
    assert not hearing.still()


def test_output_that_nobody_reads_stops_nothing(tmp_path, monkeypatch):
    """As `dtem launch | head` leaves it."""
    read, write = os.pipe()
    os.close(read)
    kept = os.dup(1)
    os.dup2(write, 1)
    before = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        job = work("a", tmp_path, python(PRINTS, "a"), beats=True)
        assert run_hosts([start_of(job, tmp_path, fake_ssh(tmp_path) / "ssh")], Signals()) == 0
    finally:
        os.dup2(kept, 1)
        signal.signal(signal.SIGPIPE, before)
        for each in (kept, write):
            os.close(each)
