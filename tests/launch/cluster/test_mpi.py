"""mpirun is started again after a crash, and a process of it says in torch's words which rank it is. (A stub
stands for mpirun: there is none here.)"""

import pytest

from launch.cluster import supervise
from launch.cluster.backends.all import BACKENDS
from launch.cluster.hosts import Host
from launch.cluster.job import HERE, Job
from launch.cluster.mpi_rank import place
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
    job = Job(train=("--config", "c"), folder="/", hosts=(Host(HERE, (0, 1)),), env=env, restarts=1)
    assert BACKENDS.build("mpi").run(job) == status
    calls = (tmp_path / "mpirun.log").read_text().split("end\n")[:-1]
    assert len(calls) == starts and all(call.startswith("it's $x\n-np\n2\n") for call in calls)
    assert [call.endswith("--resume\nauto\n") for call in calls] == [False, True][:starts]
