"""How a host's agent is started: a process here, or ssh to another host."""

import shlex

from launch.cluster.hosts import Host

OPTIONS = (
    "-T",
    "-oBatchMode=yes",
    "-oConnectTimeout=15",
    "-oServerAliveInterval=5",
    "-oServerAliveCountMax=3",
    "-oControlMaster=no",
    "-oControlPath=none",
    "-oRemoteCommand=none",
)
"""No terminal and no question; a host that is lost is told within 20 s. A connection of its own: one that the
user's settings share has their limits, and is not ended with this launch."""


def local_command(python: str, module: str) -> list[str]:
    return [python, "-P", "-m", module]


def ssh_command(host: Host, python: str, module: str, folder: str, python_path: str | None) -> list[str]:
    """The argv of ssh. Only folder, PYTHONPATH and the interpreter's path go through the host's shell, each
    quoted; all else is sent to the agent."""
    names = [f"PYTHONPATH={python_path}"] if python_path else []
    remote = f"cd {shlex.quote(folder)} && exec {shlex.join(['env', *names, *local_command(python, module)])}"
    where = ["-l", host.user] if host.user else []
    where += ["-p", str(host.port)] if host.port else []
    return ["ssh", *OPTIONS, *where, "--", host.name, remote]
