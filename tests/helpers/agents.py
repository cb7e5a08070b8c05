"""Hosts of a launch that are this machine: a program `ssh` that gives the remote command to `sh -c`, as sshd
gives it to the login shell, and programs that stand for ranks."""

import json
import sys
from pathlib import Path

from launch.cluster.hosts import Host
from launch.cluster.ssh import ssh_command
from launch.cluster.supervise import Start
from launch.cluster.work import HostWork

ROOT = Path(__file__).parents[2]
NASTY = [
    "a b",
    'it\'s "quoted"',
    "$HOME `id` $(id) ${X}",
    ";touch X&&|<>",
    "{1..3} {a,b} * ? [a] ~",
    "line\nline\r\ttab",
    "back\\slash\\",
    "!!#",
    "",
    "ünï → 漢",
    "-oProxyCommand=x",
    "%s %d",
    "no UTF-8: \udcff",
]
"""Arguments that some shell on the way would change."""
WRITES_DOWN = (
    "import json, os, sys; json.dump([sys.argv[2:], {k: v for k, v in os.environ.items() if k[:2] == 'V_'}, "
    "os.getcwd()], open(sys.argv[1], 'w'))"
)
STAYS = (
    "import os, pathlib, subprocess, sys, time\n"
    "child = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
    "folder = pathlib.Path(sys.argv[1])\n"
    "for pid in (os.getpid(), child.pid): (folder / f'{pid}.{os.environ[\"RANK\"]}').touch()\n"
    "import signal\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "signal.signal(signal.SIGUSR1, lambda *_: (child.kill(), os._exit(0)))\n"
    "time.sleep(1000)\n"
)
"""A rank with a child in a session of its own. It ignores SIGTERM, and leaves with 0 at SIGUSR1. Each of the
two has a file `PID.RANK` in the folder that the argument names."""


def work(
    host: str, folder: Path, argv: tuple[str, ...], ranks: tuple[int, ...] = (0,), env=None, beats=False
):
    processes = {f"rank {rank}": {"RANK": str(rank)} for rank in ranks}
    return HostWork(host, str(folder), argv, env or {}, processes, beats)


def python(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", code, *arguments)


def fake_ssh(folder: Path) -> Path:
    """A folder for PATH with a program `ssh`."""
    program = folder / "bin/ssh"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\nfor last; do :; done\ncd / && exec sh -c "$last"\n')
    program.chmod(0o755)
    return program.parent


def start_of(work: HostWork, folder: Path, ssh: Path | str = "ssh") -> Start:
    """How the agent of another host is started."""
    argv = ssh_command(
        Host(work.host, (0,)), sys.executable, "launch.cluster.host_agent", str(folder), str(ROOT)
    )
    return Start([str(ssh), *argv[1:]], work)


def written(path: Path) -> list:
    return json.loads(path.read_text())
