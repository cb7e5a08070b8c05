"""`dtem doctor --speed`: where merging pays on this device, measured in turns."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from launch.bench.entries import UNMERGED, Subject
from launch.bench.latency import Latency, latencies, speed_ups
from launch.bench.report import facts_of
from launch.bench.verdict import Measured, verdicts
from launch.report.tables import markdown
from pipeline.engine.model_on_device import autocast
from pipeline.errors import ConfigError, counted
from pipeline.merging.schedule import ReductionSpec

STEPS = 4
"""Reductions that are measured where none are given."""


def even_reductions(depth: int, patches: int) -> dict[str, ReductionSpec]:
    """Label -> r: a few, up to the largest that all blocks can have; where patches are too few, up to the
    last block that can merge one."""
    most = (patches - 1) // depth
    if most:
        return {f"r = {r}": r for r in _up_to(most)}
    return {f"r = 1 in {counted(blocks, 'block')}": [1] * blocks for blocks in _up_to(patches - 1)}


def _up_to(most: int) -> list[int]:
    """A few counts from 1, none where there is none."""
    return sorted({max(1, round(most * step / STEPS)) for step in range(1, STEPS + 1)}) if most else []


def speed_of(
    subject: Subject,
    batches: Sequence[int],
    how: str,
    *,
    device: torch.device,
    precision: str,
    rounds: int,
) -> dict[str, Any]:
    """All that was measured, and a verdict for each batch size, as JSON can hold it. how: one of
    `pipeline.backbone.compiled.COMPILES`. Raises as `latencies`, and ConfigError for a reduction that merges
    nothing."""
    for label, schedule in subject.schedules.items():
        if label != UNMERGED and not any(schedule):
            raise ConfigError(f"reduction {label} merges nothing: leave it out, it is the unmerged model")
    found = latencies(subject, batches, [how], device=device, precision=precision, rounds=rounds)
    measured = {size: _measured(subject, found, size) for size in batches}
    said = verdicts(measured, how != "none")
    rows = [
        {
            "batch": size,
            "reduction": own.label,
            "macs_ratio": own.macs_ratio,
            "speed_up": own.speed_up,
            "quartiles": list(own.spread),
            "share": own.share,
            "pays": own.pays,
        }
        for size, each in measured.items()
        for own in each
    ]
    facts = facts_of(subject, found, device=device, precision=precision)
    facts |= {"compile": how, "speed": rows, "verdicts": {str(size): text for size, text in said.items()}}
    with autocast(device, precision):
        facts["by_block"] = {str(size): _by_block(subject, each, size) for size, each in measured.items()}
    return facts


def _by_block(subject: Subject, measured: Sequence[Measured], size: int) -> dict[str, Any]:
    """The fastest reduction at a batch size, and r of each block where its merge pays, not compiled."""
    best = max(measured, key=lambda own: own.speed_up)
    return {"of": best.label, "schedule": subject.paying(best.label, size)}


def _measured(subject: Subject, found: Sequence[Latency], size: int) -> list[Measured]:
    """The reductions at a batch size, in the order of their MACs."""
    own = {latency.which: latency for latency in found if latency.batch == size}
    whole, macs = own.pop(UNMERGED), subject.macs
    rows = [
        Measured(label, speed_ups(latency, whole), macs[UNMERGED] / macs[label])
        for label, latency in own.items()
    ]
    return sorted(rows, key=lambda row: row.macs_ratio)


def speed_table(facts: dict[str, Any]) -> str:
    """A row for each batch size and reduction."""
    latencies = {(own["batch"], own["which"]): own for own in facts["latencies"]}
    columns = ["batch", "reduction", "MACs", "speed-up", "quartiles", "of the MACs", "p50 ms", "peak MiB"]
    rows = []
    for own in facts["speed"]:
        latency = latencies[own["batch"], own["reduction"]]
        low, high = own["quartiles"]
        rows.append(
            [
                str(own["batch"]),
                own["reduction"],
                f"1/{own['macs_ratio']:.2f}",
                f"{own['speed_up']:.2f}x",
                f"{low:.2f} to {high:.2f}",
                f"{own['share']:.0%}",
                f"{latency['p50_ms']:.2f}",
                f"{latency['peak_mib']:.0f}",
            ]
        )
    return markdown(columns, rows)


def attention_line(facts: dict[str, Any]) -> str:
    """Which kernels attention has, unmerged and merged."""
    found = facts["latencies"]
    whole = dict.fromkeys(own["attention"] for own in found if own["which"] == UNMERGED)
    merged = dict.fromkeys(own["attention"] for own in found if own["which"] != UNMERGED)
    return f"attention: {', '.join(whole)} unmerged, {', '.join(merged)} merged; compiled: {facts['compile']}"


def verdict_lines(facts: dict[str, Any]) -> Iterator[str]:
    """A verdict for each batch size, and in which blocks merging pays there."""
    for size, verdict in facts["verdicts"].items():
        own = facts["by_block"][size]
        yield verdict
        if any(own["schedule"]):
            listed = ",".join(map(str, own["schedule"]))
            yield f"  of {own['of']}, merges pay by block (uncompiled): --reduction '[{listed}]'"
        else:
            yield f"  of {own['of']}, the merge of no block pays (uncompiled)"
