"""Checks of every host before a launch. Each finding names the host and the way out."""

import json
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.checks.finding import Finding
from launch.cluster.job import Job
from launch.cluster.life_line import LifeLine
from launch.cluster.ssh import ssh_command
from pipeline.errors import ConfigError, first_few, printable

ANSWERS_WITHIN = 180.0
"""Seconds for an answer; a first import of torch from a network disk takes long."""
ENDS_WITHIN = 20.0
CLOCKS_WITHIN = 5.0
"""Seconds by which a clock may differ from the launcher's."""
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
        peer = job.address if index else names[-1]
        probe.ask(
            dict(
                first=index == 0,
                master=job.address,
                peer=peer,
                port=job.master_port or 0,
                token=token,
                file=file,
                gpus=job.uses_gpus,
            )
        )
    until = time.monotonic() + ANSWERS_WITHIN
    facts = {probe.host: probe.answer(until) for probe in probes}
    port = facts[names[0]].get("port")

    def ask_again(probe: Probe) -> dict[str, Any]:
        asked = time.time()
        probe.ask({"port": port})
        answer = probe.answer(time.monotonic() + ANSWERS_WITHIN)
        return answer | {"early": asked, "late": time.time()}

    later = dict(zip(names, threads.map(ask_again, probes), strict=True))
    findings = [finding for probe in probes for finding in judge(job, probe, facts, later, file)]
    env_of = {
        name: {"GLOO_SOCKET_IFNAME": about["interface"]}
        for name, about in facts.items()
        if about.get("own_name_is_loopback") and about.get("interface")
    }
    return Report(tuple(findings), port, env_of)


def judge(
    job: Job,
    probe: Probe,
    facts: Mapping[str, dict[str, Any]],
    later: Mapping[str, dict[str, Any]],
    file: str | None,
) -> Iterator[Finding]:
    """Findings on one host. facts, later: host -> its first and second answer. file: what the hosts are to
    have in common."""
    host, about = probe.host, facts[probe.host]
    if not about:
        way_out = f"this has to work without a question: ssh {host} {job.python} --version"
        yield Finding(f"{host}: ssh", "missing", probe.trouble, way_out)
        return
    yield Finding(f"{host}: ssh", "ok", f"Python {about['python']}")
    yield from _versions(host, about, facts)
    yield from _gpus(job, host, about)
    yield from _network(job, host, about)
    answer = later[host]
    if "time" not in answer:
        yield Finding(f"{host}: ssh", "missing", probe.trouble, "it was there a moment ago; look at its log")
        return
    yield _clock(host, answer)
    first = job.hosts[0].name
    if trouble := answer["reached"]:
        where = f"{job.address}:{facts[first].get('port')}"
        way_out = (
            f"open the ports of {first} to this host, or give --master-addr ADDRESS as hosts reach {first}"
        )
        yield Finding(f"{host}: master port", "missing", f"{where} is not reached: {trouble}", way_out)
    if file is not None:
        yield _shared(host, first, answer["sees"] or about.get("writes", ""), Path(file).parent)


def _versions(host: str, about: Mapping[str, Any], facts: Mapping[str, dict[str, Any]]) -> Iterator[Finding]:
    first, reference = next(((name, fact) for name, fact in facts.items() if fact), (host, about))
    if about["python"] != reference["python"]:
        detail = f"{about['python']}, but {reference['python']} on {first}"
        yield Finding(f"{host}: python", "missing", detail, "use one environment, at one path, on all hosts")
    here, there = about["packages"], reference["packages"]
    other = [
        f"{name} {here.get(name, 'is not installed')}, but {there.get(name, 'not installed')} on {first}"
        for name in sorted({*here, *there})
        if here.get(name) != there.get(name)
    ]
    if other:
        yield Finding(f"{host}: packages", "missing", first_few(other), "pip install the same versions there")
    else:
        yield Finding(f"{host}: packages", "ok", f"{len(here)} as on {first}")


def _gpus(job: Job, host: str, about: Mapping[str, Any]) -> Iterator[Finding]:
    if about["gpus"] is None:
        return
    highest = max(next(part for part in job.hosts if part.name == host).slots)
    if about["gpus"] <= highest:
        yield Finding(
            f"{host}: gpus",
            "missing",
            f"{about['gpus']}, but slot {highest} is to be used",
            "lower slots in the hostfile, or give --env DS_ACCELERATOR=cpu to train on CPUs",
        )
    else:
        yield Finding(f"{host}: gpus", "ok", str(about["gpus"]))


def _network(job: Job, host: str, about: Mapping[str, Any]) -> Iterator[Finding]:
    name, taken = f"{host}: network", about.get("trouble")
    if taken:
        yield Finding(
            f"{host}: master port", "missing", f"{job.master_port}: {taken}", "give another --master-port"
        )
    if len(job.hosts) == 1:
        return
    if about["interface"] is not None:
        yield Finding(name, "ok", f"interface {about['interface']}")
    elif about["own_name_is_loopback"] and "GLOO_SOCKET_IFNAME" not in job.env:
        detail = "its own name leads to a loopback address, and no interface to the other hosts was found"
        yield Finding(name, "missing", detail, "name it: --env GLOO_SOCKET_IFNAME=eth0")


def _clock(host: str, answer: Mapping[str, float]) -> Finding:
    off = max(answer["early"] - answer["time"], answer["time"] - answer["late"], 0.0)
    if off > CLOCKS_WITHIN:
        detail = f"{off:.0f} s off the launcher's"
        return Finding(f"{host}: clock", "missing", detail, "set it (chrony or systemd-timesyncd)")
    return Finding(f"{host}: clock", "ok", f"within {CLOCKS_WITHIN:.0f} s")


def _shared(host: str, first: str, trouble: str, folder: Path) -> Finding:
    if trouble:
        detail = f"{folder}: what {first} writes is not read here ({trouble})"
        way_out = "give an `output` on a file system that all hosts have in common"
        return Finding(f"{host}: output", "missing", detail, way_out)
    return Finding(f"{host}: output", "ok", f"{folder} is shared with {first}")


def require_ready(report: Report) -> None:
    """Raises HostsNotReady with all that hosts lack."""
    lacks = [
        f"{finding.name}: {finding.detail}\n    -> {finding.way_out}"
        for finding in report.findings
        if finding.status == "missing"
    ]
    if lacks:
        raise HostsNotReady("not all hosts are ready\n  " + "\n  ".join(lacks))
