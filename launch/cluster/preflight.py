"""Checks of every host before a launch. Each finding names the host and the way out."""

import json
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.checks.finding import Finding
from launch.cluster.job import Job
from launch.cluster.judge import judge
from launch.cluster.life_line import LifeLine
from launch.cluster.ssh import ssh_command
from pipeline.errors import ConfigError, printable

ANSWERS_WITHIN = 180.0
"""Seconds for an answer; a first import of torch from a network disk takes long."""
ENDS_WITHIN = 20.0
NEIGHBOURS = 32
"""Hosts that each host tries to reach: all others of up to 33."""
MODULE = "launch.cluster.probe"


class HostsNotReady(ConfigError):
    """Some hosts cannot be reached, or lack what a run needs."""


class Probe:
    """The conversation with one host."""

    def __init__(self, host: str, argv: Sequence[str], token: str):
        """token: answers have it; what else comes is what a login prints."""
        self.host, self.trouble, self._token = host, "", token
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._line = self._process.stdin, LifeLine(self._process.stdout.fileno())

    def ask(self, question: Mapping[str, Any]) -> None:
        try:
            self._input.write(json.dumps(question).encode() + b"\n")
            self._input.flush()
        except OSError:  # its end is told where the answer is read
            pass

    def answer(self, until: float) -> dict[str, Any]:
        """The next answer; empty, with `trouble`, where none comes."""
        while not self.trouble:
            if lines := self._line.lines(wait=max(0.0, min(1.0, until - time.monotonic())), most=1):
                if (answer := self._answer_of(lines[0])) is not None:
                    return answer
                continue
            if self._line.ended:
                self.trouble = self._last_words()
            elif time.monotonic() > until:
                self.trouble = f"no answer within {ANSWERS_WITHIN:.0f} s"
        return {}

    def _answer_of(self, line: bytes) -> dict[str, Any] | None:
        try:
            said = json.loads(line)
        except (ValueError, RecursionError):
            return None
        return said if isinstance(said, dict) and said.get("token") == self._token else None

    def _last_words(self) -> str:
        status = self._ended()
        self._errors.seek(0)
        said = [printable(line) for line in self._errors.read().decode(errors="replace").splitlines() if line]
        return f"{said[-1] if said else 'nothing was said'} (status {status})"

    def close(self) -> None:
        try:
            self._input.close()
        except OSError:
            pass
        self._ended()
        self._errors.close()

    def _ended(self) -> int:
        """Its exit status, once it has ended by itself or was killed."""
        try:
            return self._process.wait(timeout=ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


@dataclass(frozen=True)
class Report:
    """What the hosts said: findings, a free port of the first host, and variables of each host."""

    findings: tuple[Finding, ...]
    port: int | None
    env_of: Mapping[str, Mapping[str, str]]


def preflight(job: Job) -> Report:
    """Asks all hosts at once, before ranks are started there. Raises ConfigError where there is no ssh."""
    if shutil.which("ssh") is None:
        raise ConfigError("hosts are reached by ssh, which is not on PATH; install openssh-client")
    token = secrets.token_hex(16)
    probes = [
        Probe(host.name, ssh_command(host, job.python, MODULE, job.folder, job.env.get("PYTHONPATH")), token)
        for host in job.hosts
    ]
    with ThreadPoolExecutor(len(probes)) as threads:
        try:
            return _converse(job, probes, token, threads)
        finally:
            list(threads.map(Probe.close, probes))


def _converse(job: Job, probes: Sequence[Probe], token: str, threads: ThreadPoolExecutor) -> Report:
    shared = job.output is not None and "://" not in job.output
    file = str(Path(job.folder, job.output or "").parent / f".dtem-preflight-{token}") if shared else None
    names = [host.name for host in job.hosts]
    for index, probe in enumerate(probes):
        probe.ask(
            dict(
                first=index == 0,
                master=job.address,
                peer=names[-1] if index == 0 else job.address,
                interface=job.env.get("GLOO_SOCKET_IFNAME", ""),
                port=0 if index else job.master_port or 0,
                token=token,
                file=file,
                gpus=job.uses_gpus,
            )
        )
    until = time.monotonic() + ANSWERS_WITHIN
    facts = {probe.host: probe.answer(until) for probe in probes}
    port = facts[names[0]].get("port")

    def ask_again(probe: Probe) -> dict[str, Any]:
        asked, others = time.time(), others_of(probe.host, names)
        places = {name: [facts[name].get("address"), facts[name].get("port")] for name in others}
        probe.ask({"port": port, "others": {name: place for name, place in places.items() if all(place)}})
        answer = probe.answer(time.monotonic() + ANSWERS_WITHIN)
        return answer | {"early": asked, "late": time.time()}

    later = dict(zip(names, threads.map(ask_again, probes), strict=True))
    findings = [
        finding for probe in probes for finding in judge(job, (probe.host, probe.trouble), facts, later, file)
    ]
    env_of = {
        name: {"GLOO_SOCKET_IFNAME": about["interface"]}
        for name, about in facts.items()
        if about.get("own_name_is_loopback") and about.get("interface")
    }
    return Report(tuple(findings), port, env_of)


def others_of(host: str, names: Sequence[str]) -> list[str]:
    """The hosts that a host tries to reach: the NEIGHBOURS after it, as on a ring."""
    place = names.index(host)
    return [*names[place + 1 :], *names[:place]][:NEIGHBOURS]


def require_ready(report: Report) -> None:
    """Raises HostsNotReady with all that hosts lack."""
    lacks = [
        f"{finding.name}: {finding.detail}\n    -> {finding.way_out}"
        for finding in report.findings
        if finding.status == "missing"
    ]
    if lacks:
        raise HostsNotReady("not all hosts are ready\n  " + "\n  ".join(lacks))
