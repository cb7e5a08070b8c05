"""Ranks under Open MPI's mpirun, which is the one process of an agent of ours on this machine: it ends
with the launcher, and its end has a limit. It has no restarts of its own, so that the launcher starts it
again."""

import shlex
from dataclasses import replace

from launch.cluster.backends.backend import BACKENDS, refuse
from launch.cluster.backends.hosts_started_here import AGENT, looked_at
from launch.cluster.backends.programs import require
from launch.cluster.job import HERE, EnvOf, Job, continued, module
from launch.cluster.ssh import local_command
from launch.cluster.supervise import Signals, Start, run_hosts, with_restarts
from launch.cluster.work import HostWork
from pipeline.errors import ConfigError, first_few

RANK = "launch.cluster.mpi_rank"


@BACKENDS.register("mpi")
class Mpi:
    """mpirun hands arguments and environment on without a shell."""

    def text(self, job: Job) -> str:
        shown = job.shown()
        env = [f"{name}={value}" for name, value in shown.env.items()]
        return shlex.join(["env", *env, *_command(shown)]) + "\n"

    def run(self, job: Job) -> int:
        require("mpirun", "mpi")
        _command(job)  # what it refuses, it refuses before hosts are asked

        def start(again: bool, signals: Signals) -> int:
            now = one_environment(*looked_at(replace(job, train=continued(job.train)) if again else job))
            work = HostWork(HERE, job.folder, tuple(_command(now)), now.env, {"mpirun": {}}, beats=False)
            return run_hosts([Start(local_command(job.python, AGENT), work)], signals)

        return with_restarts(start, job.restarts)


def one_environment(job: Job, env_of: EnvOf) -> Job:
    """mpirun gives all hosts one environment: what they need, unless the job has it. Raises ConfigError where
    they need different ones."""
    needs = {host.name: {**env_of.get(host.name, {}), **job.env} for host in job.hosts}
    env = next(iter(needs.values()), dict(job.env))
    if any(other != env for other in needs.values()):
        found = [f"{host}: {' '.join(env_of.get(host, {}).values()) or 'none'}" for host in needs]
        raise ConfigError(
            f"--backend mpi gives all hosts one GLOO_SOCKET_IFNAME, and what they need differs "
            f"({first_few(found)}); name one that all have: --env GLOO_SOCKET_IFNAME=eth0, or take --backend "
            "deepspeed"
        )
    return replace(job, env=env)


def _command(job: Job) -> list[str]:
    refuse(job, "mpi", own_starter=True)
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
