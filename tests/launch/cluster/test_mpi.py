"""mpirun is started again after a crash, and a process of it says in torch's words which rank it is. (A stub
stands for mpirun: there is none here.)"""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
from agents import ROOT, fake_ssh

from launch.cluster import supervise
from launch.cluster.backends.all import BACKENDS
from launch.cluster.backends.mpi import one_environment
from launch.cluster.hosts import Host
from launch.cluster.job import HERE, Job
from launch.cluster.mpi_rank import place
from launch.cluster.preflight import HostsNotReady
from pipeline.errors import ConfigError

OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
MPICH = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


@pytest.mark.parametrize("given", [OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, MPICH])
def test_the_starters_variables_become_torchs(given):
    assert place("node-a", "1234", given) == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_SIZE": "2",
        "MASTER_ADDR": "node-a",
        "MASTER_PORT": "1234",
    }


@pytest.mark.parametrize(
    ("address", "port", "given"), [("a", "1", {}), ("-x", "1", MPICH), ("a", "x", MPICH)]
)
def test_what_says_no_rank_is_refused(address, port, given):
    with pytest.raises(ConfigError):
        place(address, port, given)


STUB = """#!/bin/sh
printf '%s\\n' "$A" "$@" >> "$0.log"
echo end >> "$0.log"
[ -e "$0.again" ] && exit 0
touch "$0.again"
exit $STATUS
"""


@pytest.mark.parametrize(("first", "status", "starts"), [("139", 0, 2), ("2", 2, 1), ("0", 0, 1)])
def test_mpirun_is_started_again_after_a_crash_alone(first, status, starts, tmp_path, monkeypatch):
    stub = tmp_path / "mpirun"
    stub.write_text(STUB)
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(supervise, "PAUSE", 0.0)
    env = {"A": "it's $x", "STATUS": first}
    job = Job(
        train=("--config", "c", "--resume", "none"),
        folder="/",
        hosts=(Host(HERE, (0, 1)),),
        env=env,
        restarts=1,
    )
    assert BACKENDS.build("mpi").run(job) == status
    calls = (tmp_path / "mpirun.log").read_text().split("end\n")[:-1]
    assert len(calls) == starts and all(call.startswith("it's $x\n-np\n2\n") for call in calls)
    assert [call.endswith("--resume\nauto\n") for call in calls] == [False, True][:starts]


@pytest.mark.parametrize("python", [sys.executable, "/no_python"])
def test_hosts_are_looked_at_before_mpirun_is_started(python, tmp_path, monkeypatch):
    stub = fake_ssh(tmp_path) / "mpirun"
    stub.write_text(STUB)
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(stub.parent), prepend=":")
    env = {
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": str(ROOT),
        "A": "",
        "STATUS": "0",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    hosts = (Host("127.0.0.1", (0,)), Host("127.0.0.2", (0, 1)))
    job = Job(train=(), folder=str(ROOT), hosts=hosts, env=env, python=python)
    if python == sys.executable:
        assert BACKENDS.build("mpi").run(job) == 0
        assert "127.0.0.1:1,127.0.0.2:2" in stub.with_suffix(".log").read_text().splitlines()
    else:
        with pytest.raises(HostsNotReady, match="127.0.0.2: ssh: .*no_python"):
            BACKENDS.build("mpi").run(job)
        assert not stub.with_suffix(".log").exists()


def test_all_hosts_of_mpirun_get_one_environment():
    job = Job(train=(), folder="/", hosts=(Host("a", (0,)), Host("b", (0,))), env={"A": "1"})
    same = {name: {"GLOO_SOCKET_IFNAME": "eth0"} for name in "ab"}
    assert one_environment(job, {}).env == {"A": "1"}
    assert one_environment(job, same).env == {"A": "1", "GLOO_SOCKET_IFNAME": "eth0"}
    for other, told in (({"b": {"GLOO_SOCKET_IFNAME": "eth1"}}, "eth1"), ({"b": {}}, "none")):
        with pytest.raises(ConfigError, match=f"differs .a: eth0; b: {told}.; .*--backend deepspeed"):
            one_environment(job, same | other)
        own = replace(job, env={"GLOO_SOCKET_IFNAME": "ib0"})
        assert one_environment(own, same | other) == own


STAYS = """#!/bin/sh
trap '' TERM USR1
echo $$ > "$0.pid.new"; mv "$0.pid.new" "$0.pid"
while :; do sleep 1; done
"""
LAUNCHER = """
import sys
from launch.cluster.backends.all import BACKENDS
from launch.cluster.hosts import Host
from launch.cluster.job import HERE, Job
sys.exit(BACKENDS.build("mpi").run(Job(train=(), folder="/", hosts=(Host(HERE, (0, 1)),))))
"""


@pytest.mark.parametrize("how", ["killed", "interrupted three times"])
def test_an_mpirun_that_does_not_answer_ends_with_the_launcher(how, tmp_path):
    stub = tmp_path / "mpirun"
    stub.write_text(STAYS)
    stub.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER], env=env, start_new_session=True)
    until = time.monotonic() + 120
    while not (pid := tmp_path / "mpirun.pid").exists():
        assert launcher.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    mpirun = psutil.Process(int(pid.read_text()))
    if how == "killed":
        launcher.kill()
    else:
        for _ in range(3):
            launcher.send_signal(signal.SIGINT)
            time.sleep(0.5)
    assert not psutil.wait_procs([mpirun], timeout=60)[1]
    assert launcher.wait(60) == (-signal.SIGKILL if how == "killed" else 128 + signal.SIGINT)
