"""Ranks on the hosts of a DeepSpeed hostfile, over ssh, in place of DeepSpeed's own launcher.

That launcher hands arguments, environment and hostfile lines to the shells of the hosts without quoting
them, and ends a job by a pattern of names. Here they travel as data, and what is ended was started here. A
rank gets the variables that DeepSpeed's connection reads.
"""

from launch.cluster.backends.backend import BACKENDS, refuse
from launch.cluster.backends.hosts_started_here import run_on_hosts, text_of_hosts
from launch.cluster.job import Job, rank_by_rank


@BACKENDS.register("deepspeed")
class DeepSpeed:
    """One agent of ours on each host, and its ranks under it."""

    def text(self, job: Job) -> str:
        refuse(job, "deepspeed")
        return text_of_hosts(job, rank_by_rank)

    def run(self, job: Job) -> int:
        refuse(job, "deepspeed")
        return run_on_hosts(job, rank_by_rank, job.restarts)
