"""Ranks under Open MPI's mpirun. It has no restarts of its own, so that the launcher starts it again."""

import os
import shlex
import signal
import subprocess
import time

from launch.cluster.backends.backend import BACKENDS, refuse
from launch.cluster.backends.programs import require
from launch.cluster.environment import shown
from launch.cluster.job import Job, continued, module
from launch.cluster.supervise import Signals, with_restarts
from pipeline.errors import ConfigError

RANK = "launch.cluster.mpi_rank"


@BACKENDS.register("mpi")
class Mpi:
    """mpirun hands arguments and environment on without a shell."""

    def text(self, job: Job) -> str:
        env = [f"{name}={value}" for name, value in shown(job.env).items()]
        return shlex.join(["env", *env, *_command(job)]) + "\n"

    def run(self, job: Job) -> int:
        require("mpirun", "mpi")

        def start(again: bool, signals: Signals) -> int:
            return _wait(_command(continued(job) if again else job), job, signals)

        return with_restarts(start, job.restarts)


def _command(job: Job) -> list[str]:
    refuse(job, "mpi")
    ranks = sum(len(host.slots) for host in job.hosts) or job.processes
    hosts = ",".join(f"{host.name}:{len(host.slots)}" for host in job.hosts)
    exported = [word for name in job.env for word in ("-x", name)]
    return [
        "mpirun",
        "-np",
        str(ranks),
        *(["--host", hosts] if job.over_a_network else []),
        *_ssh(job),
        "--bind-to",
        "none",
        "--wdir",
        job.folder,
        *exported,
        *module(job, RANK, job.address, str(job.port), *job.train),
    ]


def _ssh(job: Job) -> list[str]:
    """mpirun starts on all hosts with one command of ssh."""
    ways = {(host.user, host.port) for host in job.hosts}
    if len(ways) > 1:
        raise ConfigError(
            "--backend mpi takes one ssh user and port for all hosts; write them to ~/.ssh/config"
        )
    user, port = ways.pop() if ways else (None, None)
    words = ["-l", user] if user else []
    words += ["-p", str(port)] if port else []
    return ["--mca", "plm_rsh_args", " ".join(words)] if words else []


def _wait(argv: list[str], job: Job, signals: Signals) -> int:
    """mpirun passes SIGUSR1 on to its ranks, and ends them at SIGTERM: so each request to stop reaches it as
    SIGUSR1."""
    with signals:
        process = subprocess.Popen(argv, env={**os.environ, **job.env}, start_new_session=True)
        while (code := process.poll()) is None:
            if signals.take():
                process.send_signal(signal.SIGTERM if signals.at_once else signal.SIGUSR1)
            time.sleep(0.1)
    return 128 - code if code < 0 else code
