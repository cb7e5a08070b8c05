"""Ranks on this machine."""

from launch.cluster.backends.backend import BACKENDS, refuse
from launch.cluster.backends.hosts_started_here import run_on_hosts, text_of_hosts
from launch.cluster.job import Job, rank_by_rank
from pipeline.errors import ConfigError


@BACKENDS.register("local")
class Local:
    """One agent of ours, and the ranks under it. The config's engine.type says what trains them."""

    def text(self, job: Job) -> str:
        _check(job)
        return text_of_hosts(job, rank_by_rank)

    def run(self, job: Job) -> int:
        _check(job)
        return run_on_hosts(job, rank_by_rank, job.restarts)


def _check(job: Job) -> None:
    refuse(job, "local")
    if job.over_a_network:
        raise ConfigError("--backend local starts on this machine; for a hostfile give --backend deepspeed")
