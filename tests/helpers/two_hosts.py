"""Two hosts on one machine: network namespaces with addresses of their own, joined by a cable, and in each an
sshd with processes, mounts and shared memory of its own. Needs root, `ip netns`, `unshare` and sshd."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

NAMES = ("node-a", "node-b")
SSHD = shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
PORT = 2222
WAIT = 60.0


def why_not() -> str:
    """Why two hosts cannot be had here; empty where they can."""
    if os.geteuid() != 0:
        return "two hosts need root"
    for program in ("ip", "unshare", "ssh", "ssh-keygen"):
        if shutil.which(program) is None:
            return f"two hosts need the program {program}"
    if SSHD is None:
        return "two hosts need sshd (apt-get install openssh-server)"
    trial = f"dtem-trial-{os.getpid()}"
    try:
        _do("ip", "netns", "add", trial)
        _do("ip", "netns", "exec", trial, "unshare", "--mount", "--pid", "--fork", "true")
    except subprocess.CalledProcessError as err:
        return f"two hosts need network namespaces: {err.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", trial], capture_output=True)
    return ""


def _do(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, text=True, timeout=WAIT)


class TwoHosts:
    """Context manager of node-a (10.77.0.1) and node-b (10.77.0.2). `folder` gets keys, settings, a hostfile
    and a program `ssh` that finds them."""

    def __init__(self, folder: Path, slots: int = 1):
        self.folder, self.hostfile = folder, folder / "hosts"
        self._tag = f"dtem{os.getpid() % 100_000}"
        self._sshds: list[subprocess.Popen] = []
        self.hostfile.write_text("".join(f"{name} slots={slots}\n" for name in NAMES))

    def namespace(self, host: str) -> str:
        return f"{self._tag}-{host}"

    def __enter__(self) -> "TwoHosts":
        try:
            self._lay_cable()
            self._write_settings()
            for host in NAMES:
                self._sshds.append(self._start_sshd(host))
            for host in NAMES:
                self._wait_for(host)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for sshd in self._sshds:
            sshd.kill()  # `unshare --kill-child`: all processes of the host go with it
            sshd.wait()
        for host in NAMES:
            subprocess.run(["ip", "netns", "del", self.namespace(host)], capture_output=True)
            shutil.rmtree(Path("/etc/netns", self.namespace(host)), ignore_errors=True)

    def _lay_cable(self) -> None:
        for host in NAMES:
            _do("ip", "netns", "add", self.namespace(host))
        first, second = map(self.namespace, NAMES)
        _do(*f"ip link add eth0 netns {first} type veth peer name eth0 netns {second}".split())
        names = "127.0.0.1 localhost\n" + "".join(f"10.77.0.{i} {host}\n" for i, host in enumerate(NAMES, 1))
        for number, host in enumerate(NAMES, start=1):
            _do("ip", "-n", self.namespace(host), "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                _do("ip", "-n", self.namespace(host), "link", "set", link, "up")
            settings = Path("/etc/netns", self.namespace(host))
            settings.mkdir(parents=True)
            (settings / "hosts").write_text(names)

    def _write_settings(self) -> None:
        for key in ("client", "host"):
            _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / key))
        shutil.copy(self.folder / "client.pub", self.folder / "authorized_keys")
        Path("/run/sshd").mkdir(exist_ok=True)
        (self.folder / "sshd_config").write_text(
            f"Port {PORT}\nHostKey {self.folder}/host\nPidFile none\nUsePAM no\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nStrictModes no\n"
            f"AuthorizedKeysFile {self.folder}/authorized_keys\n"
        )
        (self.folder / "ssh_config").write_text(
            f"Host {' '.join(NAMES)}\nPort {PORT}\nUser root\nIdentityFile {self.folder}/client\n"
            "IdentitiesOnly yes\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n"
        )
        program = self.folder / "bin/ssh"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self.folder}/ssh_config "$@"\n')
        program.chmod(0o755)

    def _start_sshd(self, host: str) -> subprocess.Popen:
        inside = f"mount -t tmpfs -o size=1g tmpfs /dev/shm && exec {SSHD} -f {self.folder}/sshd_config -D"
        own = "unshare --mount --pid --fork --kill-child --mount-proc".split()
        with open(self.folder / f"{host}.log", "wb") as log:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace(host), *own, "sh", "-c", inside],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait_for(self, host: str) -> None:
        until = time.monotonic() + WAIT
        while subprocess.run(self.inside(NAMES[0], "ssh", host, "true"), capture_output=True).returncode:
            assert time.monotonic() < until, f"{host}: {(self.folder / f'{host}.log').read_text()}"
            time.sleep(0.1)

    def inside(self, host: str, *argv: str) -> list[str]:
        """The command that runs on a host."""
        path = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])
        return ["ip", "netns", "exec", self.namespace(host), "env", f"PATH={path}", *argv]

    def start(self, host: str, argv: Sequence[str], **options: object) -> subprocess.Popen:
        return subprocess.Popen(
            self.inside(host, *argv),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **options,  # pyright: ignore
        )

    def processes(self, host: str) -> list[psutil.Process]:
        """All that runs on a host but its sshd, and what was started by `start`."""
        listed = subprocess.run(["ip", "netns", "pids", self.namespace(host)], capture_output=True, text=True)
        found = [_process(int(pid)) for pid in listed.stdout.split()]
        sshds = {child.pid for sshd in self._sshds for child in [psutil.Process(sshd.pid)]}
        sshds |= {child.pid for pid in sshds for child in psutil.Process(pid).children()}
        return [process for process in found if process is not None and process.pid not in sshds]

    def cut(self) -> None:
        """Pulls the cable out of node-b."""
        _do("ip", "-n", self.namespace(NAMES[1]), "link", "set", "eth0", "down")

    def mend(self) -> None:
        _do("ip", "-n", self.namespace(NAMES[1]), "link", "set", "eth0", "up")


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None


if __name__ == "__main__":  # by hand: python tests/helpers/two_hosts.py FOLDER COMMAND ... runs it on node-a
    place = Path(sys.argv[1]).resolve()
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    print(why_not())
    with TwoHosts(place) as hosts:
        sys.exit(subprocess.run(hosts.inside(NAMES[0], *sys.argv[2:])).returncode)
