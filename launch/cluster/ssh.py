"""How a host's agent is started: a process here, or ssh to another host."""

import shlex
from collections.abc import Sequence

from launch.cluster.hosts import Host

OPTIONS = (
    "-T",
    "-oBatchMode=yes",
    "-oConnectTimeout=15",
    "-oServerAliveInterval=5",
    "-oServerAliveCountMax=3",
)
"""No terminal and no question; a host that is lost is told within 20 s."""


def local_command(python: str, module: str) -> list[str]:
    return [python, "-P", "-m", module]


def ssh_command(host: Host, python: str, module: str, folder: str, python_path: str | None) -> list[str]:
    """The argv of ssh. Only folder, PYTHONPATH and the interpreter's path go through the host's shell, each
    quoted; all else is sent to the agent."""
    names = [f"PYTHONPATH={python_path}"] if python_path else []
    remote = f"cd {shlex.quote(folder)} && exec {quoted(['env', *names, *local_command(python, module)])}"
    where = ["-l", host.user] if host.user else []
    where += ["-p", str(host.port)] if host.port else []
    return ["ssh", *OPTIONS, *where, "--", host.name, remote]


def quoted(words: Sequence[str]) -> str:
    """The words as a POSIX shell reads them back, byte for byte."""
    return shlex.join(words)
