"""`dtem launch` on two real hosts: network namespaces with an sshd each (tests/helpers/two_hosts.py)."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from agents import NASTY, ROOT, WRITES_DOWN, python, start_of, work, written
from deepspeed_launch import environment, without_key_bias
from tinyrun import CONTINUOUS, tiny_plain
from two_hosts import TwoHosts, why_not

from launch.cluster.supervise import Signals, run_hosts
from pipeline.train.storage import read_checkpoint

WITHIN = 30
REASON = why_not()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "two hosts are there")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    with TwoHosts(tmp_path_factory.mktemp("hosts")) as two:
        yield two


def test_what_a_shell_would_change_arrives_byte_for_byte_through_sshd(hosts, tmp_path):
    env = {f"V_{number}": value for number, value in enumerate(NASTY)}
    folder = tmp_path / "a $(touch X) 'folder'"
    folder.mkdir()
    job = work("node-b", folder, python(WRITES_DOWN, str(tmp_path / "seen"), *NASTY), env=env, beats=True)
    start = start_of(job, folder, "ssh")
    start = type(start)(hosts.inside("node-a", *start.argv), job)
    assert run_hosts([start], Signals()) == 0
    assert written(tmp_path / "seen") == [NASTY, env, str(folder)]
    assert not list(tmp_path.rglob("X"))


def config_of(digits: Path, output: Path, *, steps: int = 6) -> Path:
    plain = tiny_plain(
        digits,
        output,
        data=dict(batch_size=4, workers=1),
        backbone=dict(drop_path=0.0),
        merging=CONTINUOUS,
        engine=dict(type="deepspeed", zero_stage=2, precision="fp32"),
        train=dict(steps=steps, log_every=1, save_every=3, keep_checkpoints=5),
    )
    path = output.with_suffix(".json")
    path.write_text(json.dumps(plain))
    return path


def dtem(*words: str) -> list[str]:
    return [sys.executable, "-m", "launch.cli", *words]


def launch(hosts: TwoHosts, *words: str) -> subprocess.Popen:
    """`dtem launch` on node-a, over both hosts."""
    over = ("launch", "--hostfile", str(hosts.hostfile), *words)
    return hosts.start("node-a", dtem(*over), cwd=ROOT, env=environment())


def finish(process: subprocess.Popen) -> tuple[int, str]:
    try:
        text, _ = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"the launch hung; its output was\n{process.communicate()[0]}") from None
    return process.returncode, text


def wait_for(path: Path, process: subprocess.Popen) -> None:
    until = time.monotonic() + 600
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)


def ranks(hosts: TwoHosts, host: str) -> list[psutil.Process]:
    """The ranks of a host. Their data workers have the same command line and a rank as parent; the command of
    torch's agent holds that of its ranks."""
    words = {p: p.cmdline() for p in hosts.processes(host)}
    found = [
        p for p in words if "launch.cluster.rank" in words[p] and "launch.cluster.elastic" not in words[p]
    ]
    return [p for p in found if p.ppid() not in {other.pid for other in found}]


def tensors(output: Path, step: int = 6) -> dict[str, torch.Tensor]:
    found = read_checkpoint(output / f"checkpoints/step_{step:08d}").tensors
    return {name: tensor for name, tensor in found.items() if not name.startswith("rng.")}


def assert_nothing_left(hosts: TwoHosts, processes: list[psutil.Process]) -> None:
    """None of the run's processes, and nothing else, on either host."""
    left = psutil.wait_procs(processes, timeout=WITHIN)[1]
    assert not left, [p.cmdline() for p in left]
    assert not [p.cmdline() for host in ("node-a", "node-b") for p in hosts.processes(host)]


def test_the_doctor_sees_interfaces_and_a_folder_that_is_not_shared(hosts):
    """Each host has a /dev/shm of its own."""
    look = ("doctor", "--hostfile", str(hosts.hostfile), "--output")
    asked = {
        folder: hosts.start("node-a", dtem(*look, folder), cwd=ROOT, env=environment())
        for folder in (str(hosts.folder / "run"), "/dev/shm/dtem-test/run")
    }
    (shared, said), (own, refused) = (finish(process) for process in asked.values())
    assert shared == 0 and "nothing that is needed is missing" in said, said
    for host in ("node-a", "node-b"):
        assert re.search(rf"^ok +{host}: network +interface eth0$", said, re.M), said
        assert re.search(rf"^ok +{host}: other hosts +1 reached$", said, re.M), said
    assert own == 1 and "missing: node-b: output" in refused, refused
    assert "give an `output` on a file system that all hosts have in common" in refused


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["deepspeed", "torchrun"])
def test_two_hosts_end_where_two_processes_of_one_host_end(backend, hosts, digits, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    config = str(config_of(digits, one))
    here = dtem("launch", "--nproc", "2", "--backend", backend, "--config", config)
    code = subprocess.run(here, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600)
    assert code.returncode == 0, code.stderr
    code, text = finish(launch(hosts, "--backend", backend, "--config", str(config_of(digits, two))))
    assert code == 0, text
    assert "node-b: GLOO_SOCKET_IFNAME=eth0" in text
    here_and_there = tensors(one), tensors(two)
    assert here_and_there[0].keys() == here_and_there[1].keys()
    for name, tensor in here_and_there[0].items():
        pair = without_key_bias(name, here_and_there[1][name]), without_key_bias(name, tensor)
        torch.testing.assert_close(*pair, atol=1e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["rank of node-b", "rank of node-a", "launcher", "agent of node-b"])
def test_a_kill_leaves_nothing_on_either_host(whom, hosts, digits, tmp_path):
    output = tmp_path / "run"
    config = str(config_of(digits, output, steps=100_000))
    launcher = launch(hosts, "--backend", "deepspeed", "--config", config)
    wait_for(output / "checkpoints/step_00000003", launcher)
    processes = [p for host in ("node-a", "node-b") for p in hosts.processes(host)]
    if whom == "launcher":
        victim = next(p for p in processes if "launch.cli" in p.cmdline())
    elif whom.startswith("agent"):
        victim = next(p for p in hosts.processes("node-b") if "launch.cluster.host_agent" in p.cmdline()[:5])
    else:
        (victim,) = ranks(hosts, whom.split()[-1])
    victim.kill()
    assert_nothing_left(hosts, processes)
    launcher.communicate(timeout=WITHIN)


@pytest.mark.slow
def test_a_cut_cable_ends_both_hosts(hosts, digits, tmp_path):
    output = tmp_path / "run"
    launcher = launch(
        hosts, "--backend", "deepspeed", "--config", str(config_of(digits, output, steps=100_000))
    )
    wait_for(output / "checkpoints/step_00000003", launcher)
    processes = [rank for host in ("node-a", "node-b") for rank in ranks(hosts, host)]
    assert len(processes) == 2
    hosts.cut()
    try:
        # silence is noticed after 20 s, and a rank has 8 s to leave
        assert not psutil.wait_procs(processes, timeout=2 * WITHIN)[1]
        code, text = finish(launcher)
        assert code == 255 and "node-b: the connection of ssh failed or was lost" in text
    finally:
        hosts.mend()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_the_launcher_saves_and_ends_all(number, hosts, digits, tmp_path):
    output = tmp_path / "run"
    launcher = launch(
        hosts, "--backend", "deepspeed", "--config", str(config_of(digits, output, steps=100_000))
    )
    wait_for(output / "checkpoints/step_00000003", launcher)
    processes = [p for host in ("node-a", "node-b") for p in hosts.processes(host)]
    next(p for p in processes if "launch.cli" in p.cmdline()).send_signal(number)
    code, text = finish(launcher)
    assert code == 0 and "stopped as asked after step" in text, text
    assert_nothing_left(hosts, processes)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["deepspeed", "torchrun"])
def test_a_killed_rank_is_restarted_and_the_run_ends_as_one_that_was_not(backend, hosts, digits, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    code, text = finish(
        launch(hosts, "--backend", backend, "--config", str(config_of(digits, whole, steps=30)))
    )
    assert code == 0, text
    words = ("--restarts", "1", "--backend", backend, "--config", str(config_of(digits, broken, steps=30)))
    launcher = launch(hosts, *words)
    wait_for(broken / "checkpoints/step_00000006", launcher)
    ranks(hosts, "node-b")[0].kill()
    code, text = finish(launcher)
    assert code == 0, text
    assert "continues after step" in text, text
    first, second = tensors(whole, 30), tensors(broken, 30)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
