"""Ranks under torch's elastic agent, one agent on each host. It restarts them after a crash without a new
connection to the host."""

from launch.cluster.backends.backend import BACKENDS, refuse
from launch.cluster.backends.hosts_started_here import run_on_hosts, text_of_hosts
from launch.cluster.job import Job, elastic_by_host


@BACKENDS.register("torchrun")
class Torchrun:
    """One agent of ours on each host, as life line, torch's under it, and the ranks under that."""

    def text(self, job: Job) -> str:
        refuse(job, "torchrun")
        return text_of_hosts(job, elastic_by_host)

    def run(self, job: Job) -> int:
        refuse(job, "torchrun")
        return run_on_hosts(job, elastic_by_host, restarts=0)
