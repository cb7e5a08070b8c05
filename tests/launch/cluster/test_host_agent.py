"""An agent starts what it is sent byte for byte, passes signals on, and leaves nothing behind, however the
launcher, a rank or the agent itself ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from agents import NASTY, ROOT, STAYS, WRITES_DOWN, fake_ssh, python, start_of, work, written
from hypothesis import given
from hypothesis import strategies as st

from launch.cluster import life_line
from launch.cluster.life_line import LifeLine
from launch.cluster.ssh import local_command
from launch.cluster.supervise import Signals, Start, run_hosts
from launch.cluster.work import STOP_LINE, HostWork

WITHIN = 30
AGENT = local_command(sys.executable, "launch.cluster.host_agent")


def start_agent(work: HostWork) -> subprocess.Popen:
    agent = subprocess.Popen(AGENT, stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    agent.stdin.write(work.line())
    agent.stdin.flush()
    return agent


def ranks_of(folder: Path, number: int) -> list[psutil.Process]:
    """The processes that have left their pids there, as soon as all have."""
    until = time.monotonic() + 120
    while len(found := list(folder.glob("[0-9]*.[0-9]"))) < number:
        assert time.monotonic() < until
        time.sleep(0.02)
    return [psutil.Process(int(path.stem)) for path in found]


def assert_gone(processes: list[psutil.Process]) -> None:
    assert not psutil.wait_procs(processes, timeout=WITHIN)[1]


@pytest.fixture
def staying(tmp_path):
    """Two ranks with a child each, and their agent."""
    agent = start_agent(work("here", tmp_path, python(STAYS, str(tmp_path)), ranks=(0, 1)))
    yield agent, ranks_of(tmp_path, 4)
    agent.kill()
    agent.wait()
    agent.stdin.close()


def test_all_end_when_the_launcher_does(staying):
    agent, processes = staying
    agent.stdin.close()
    assert_gone(processes)
    assert agent.wait(WITHIN) == 1


def test_all_end_when_one_fails_and_its_status_is_told(staying):
    agent, processes = staying
    processes[0].kill()  # a rank, or the child of one, which nobody waits for
    next(p for p in processes if p.is_running() and p.name() != "sleep").kill()
    assert_gone(processes)
    assert agent.wait(WITHIN) == 128 + signal.SIGKILL


@pytest.mark.parametrize("way", ["line", "signal"])
def test_a_request_to_stop_reaches_the_ranks(staying, way):
    agent, processes = staying
    if way == "line":
        agent.stdin.write(STOP_LINE)
        agent.stdin.flush()
    else:
        agent.send_signal(signal.SIGTERM)
    assert agent.wait(WITHIN) == 0
    assert_gone(processes)


def test_a_rank_that_answers_no_signal_dies_with_its_agent(tmp_path):
    code = (
        "import os, pathlib, sys, time; from pipeline.processes import end_with_agent, stop_with_launcher;"
        "end_with_agent(); os.environ['CROSS_RANK'] = '0'; stop_with_launcher();"
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]);"
        "pathlib.Path(sys.argv[1], f'{os.getpid()}.0').touch(); time.sleep(1000)"
    )
    agent = start_agent(work("here", ROOT, (sys.executable, "-c", code, str(tmp_path))))
    processes = ranks_of(tmp_path, 1)
    agent.kill()
    agent.wait()
    agent.stdin.close()
    assert_gone(processes)


def test_arguments_environment_and_folder_arrive_byte_for_byte(tmp_path, monkeypatch):
    """Through a shell as sshd starts it, which sees none of them but the folder."""
    folder = tmp_path / 'it\'s a $(touch X) `touch X` "folder"\nof {1..2};'
    folder.mkdir()
    monkeypatch.setenv("PATH", str(fake_ssh(tmp_path)), prepend=os.pathsep)
    env = {f"V_{number}": value for number, value in enumerate(NASTY)}
    job = work("there", folder, python(WRITES_DOWN, str(tmp_path / "seen"), *NASTY), env=env, beats=True)
    assert run_hosts([start_of(job, folder)], Signals()) == 0
    assert written(tmp_path / "seen") == [NASTY, env, str(folder)]
    assert not list(tmp_path.rglob("X"))


@given(st.lists(st.text(), max_size=4), st.dictionaries(st.text(), st.text(), max_size=4))
def test_any_work_is_one_line_and_comes_back(argv, env):
    sent = HostWork("host", "/x", tuple(argv), env, {"rank 0": env}, True)
    line = sent.line()
    assert line.count(b"\n") == 1 and HostWork.of(line) == sent


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_a_life_line_gives_whole_lines_and_knows_its_end(cut):
    read, write = os.pipe()
    line, content = LifeLine(read), b"first\n\nstop\nhalf"
    parts = [content[start : start + cut] for start in range(0, len(content), cut)]
    got = []
    for part in parts:
        os.write(write, part)
        got += line.lines(wait=10)
    os.close(write)
    while not line.ended:
        got += line.lines(wait=10)
    assert got == [b"first", b"", b"stop"]
    assert line.lost(beats=False) == "the launcher has ended"
    os.close(read)


def test_silence_is_the_launchers_loss_where_it_should_beat(monkeypatch):
    read, write = os.pipe()
    line = LifeLine(read)
    monkeypatch.setattr(life_line, "SILENCE", -1.0)
    assert "no word" in line.lost(beats=True) and not line.lost(beats=False)
    monkeypatch.setattr(life_line, "SILENCE", 1000.0)
    assert not line.lost(beats=True)
    os.close(read)
    os.close(write)


LAUNCHER = """
import sys
from pathlib import Path
from agents import STAYS, python, start_of, work
from launch.cluster.supervise import Signals, run_hosts
folder, ssh = Path(sys.argv[1]), sys.argv[2]
works = [work(f"host{i}", folder, python(STAYS, str(folder)), ranks=(i,), beats=True) for i in (0, 1)]
sys.exit(run_hosts([start_of(part, folder, ssh) for part in works], Signals()))
"""


@pytest.fixture
def launched(tmp_path):
    """A launcher with two hosts, a rank and its child on each."""
    ssh = fake_ssh(tmp_path) / "ssh"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests/helpers")])
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path), str(ssh)],
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )
    processes = ranks_of(tmp_path, 4)
    agents = psutil.Process(launcher.pid).children(recursive=True)
    yield launcher, processes, agents, tmp_path
    if launcher.poll() is None:
        launcher.kill()
    launcher.wait()


def test_all_hosts_end_when_the_launcher_is_killed(launched):
    launcher, processes, agents, _ = launched
    launcher.kill()
    assert_gone(processes + agents)


def test_all_hosts_end_when_a_rank_of_one_fails(launched):
    launcher, processes, agents, folder = launched
    rank = next(p for p in processes if (folder / f"{p.pid}.1").exists() and p.name() != "sleep")
    rank.kill()
    assert_gone(processes + agents)
    assert launcher.wait(WITHIN) == 128 + signal.SIGKILL


def test_a_request_to_stop_reaches_the_ranks_of_all_hosts(launched):
    launcher, processes, agents, _ = launched
    launcher.send_signal(signal.SIGUSR1)
    assert launcher.wait(WITHIN) == 0
    assert_gone(processes + agents)


def test_a_host_that_cannot_be_reached_fails_the_launch(tmp_path, capfd):
    job = work("there", tmp_path, python("pass"))
    status = run_hosts([Start(["sh", "-c", "exit 255"], job), Start(["cat"], job)], Signals())
    assert status == 255 and "there: the connection of ssh failed" in capfd.readouterr().err
