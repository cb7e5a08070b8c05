"""What is made of the answers of a host (preflight.py): findings, each with the host's name and the way
out."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launch.checks.finding import Finding
from launch.cluster.job import Job
from pipeline.errors import first_few

CLOCKS_WITHIN = 5.0
"""Seconds by which a clock may differ from the launcher's."""


def judge(
    job: Job,
    asked: tuple[str, str],
    facts: Mapping[str, dict[str, Any]],
    later: Mapping[str, dict[str, Any]],
    file: str | None,
) -> Iterator[Finding]:
    """Findings on one host. asked: the host, and why it did not answer, if so. facts, later: host -> its
    first and second answer. file: what the hosts are to have in common."""
    host, trouble = asked
    about = facts[host]
    if not about:
        way_out = f"this has to work without a question: ssh {host} {job.python} --version"
        yield Finding(f"{host}: ssh", "missing", trouble, way_out)
        return
    yield Finding(f"{host}: ssh", "ok", f"Python {about['python']}")
    yield from _versions(host, about, facts)
    yield from _gpus(job, host, about)
    yield from _network(job, host, about)
    answer = later[host]
    if "time" not in answer:
        yield Finding(f"{host}: ssh", "missing", trouble, "it was there a moment ago; look at its log")
        return
    yield _clock(host, answer)
    first = job.hosts[0].name
    if trouble := answer["reached"]:
        where = f"{job.address}:{facts[first].get('port')}"
        way_out = (
            f"open the ports of {first} to this host, or give --master-addr ADDRESS as hosts reach {first}"
        )
        yield Finding(f"{host}: master port", "missing", f"{where} is not reached: {trouble}", way_out)
    yield from _others(host, answer["others"])
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
    if about["address"] is None and (named := job.env.get("GLOO_SOCKET_IFNAME")):
        way_out = f"name the one of this host, as `ssh {host} ip address` shows it"
        yield Finding(name, "missing", f"GLOO_SOCKET_IFNAME is {named}, which is not here", way_out)
    elif about["interface"] is not None:
        yield Finding(name, "ok", f"interface {about['interface']}")
    elif about["own_name_is_loopback"] and "GLOO_SOCKET_IFNAME" not in job.env:
        detail = "its own name leads to a loopback address, and no interface to the other hosts was found"
        yield Finding(name, "missing", detail, "name it: --env GLOO_SOCKET_IFNAME=eth0")


def _others(host: str, troubles: Mapping[str, str]) -> Iterator[Finding]:
    """troubles: host that was tried -> empty, or why it was not reached."""
    lost = [f"{name}: {trouble}" for name, trouble in troubles.items() if trouble]
    if lost:
        way_out = (
            "open all ports among the hosts, as ranks take free ones; where they have several networks, name "
            "the common one: --env GLOO_SOCKET_IFNAME=eth0 (and NCCL_SOCKET_IFNAME)"
        )
        yield Finding(f"{host}: other hosts", "missing", f"not reached: {first_few(lost)}", way_out)
    elif troubles:
        yield Finding(f"{host}: other hosts", "ok", f"{len(troubles)} reached")


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
