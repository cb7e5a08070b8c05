"""What the backends have in common that start the agents of hosts from here: this machine's, or over ssh."""

import json
import shlex
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

from launch.cluster.job import EnvOf, Job, continued
from launch.cluster.preflight import preflight, require_ready
from launch.cluster.ssh import local_command, ssh_command
from launch.cluster.supervise import Signals, Start, run_hosts, with_restarts
from launch.cluster.work import BEAT, HostWork

Works = Callable[[Job, EnvOf], Iterator[HostWork]]
AGENT = "launch.cluster.host_agent"


def run_on_hosts(job: Job, works: Works, restarts: int) -> int:
    """Looks at the hosts, starts their agents, and stays until all are done. Raises ConfigError."""

    def start(again: bool, signals: Signals) -> int:
        now = replace(job, train=continued(job.train)) if again else job
        attempt, env_of = looked_at(now)
        return run_hosts(list(_starts(attempt, works, env_of)), signals)

    return with_restarts(start, restarts)


def looked_at(job: Job) -> tuple[Job, EnvOf]:
    """The job with a free port, and the variables of each host, once all hosts have been looked at. Raises
    HostsNotReady, and ConfigError where there is no ssh."""
    if not job.over_a_network:
        return replace(job, master_port=job.master_port or _free_port()), {}
    report = preflight(job)
    require_ready(report)
    for host, values in report.env_of.items():
        print(f"{host}: {' '.join(f'{name}={value}' for name, value in values.items())}", file=sys.stderr)
    return replace(job, master_port=report.port), report.env_of


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _starts(job: Job, works: Works, env_of: EnvOf) -> Iterator[Start]:
    for host, work in zip(job.hosts, works(job, env_of), strict=True):
        if job.over_a_network:
            argv = ssh_command(host, job.python, AGENT, job.folder, job.env.get("PYTHONPATH"))
        else:
            argv = local_command(job.python, AGENT)
        yield Start(argv, work)


def text_of_hosts(job: Job, works: Works) -> str:
    """The command of each host, and what it is sent on its standard input. Values of secrets are left out."""
    lines = []
    for start in _starts(job.shown(), works, {}):
        work = start.work
        beat = f", then a beat every {BEAT:.0f} s" if work.beats else ""
        lines += [
            f"# {work.host}: {', '.join(work.processes)}; the line goes to its standard input{beat}",
            f"{{ printf '%s\\n' {shlex.quote(json.dumps(asdict(work)))}; cat; }} | {shlex.join(start.argv)}",
        ]
    return "\n".join(lines) + "\n"
