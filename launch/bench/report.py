"""The table and the facts of `dtem bench`."""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from statistics import median
from typing import Any

import torch

from launch.bench.entries import MERGED, UNMERGED, Subject
from launch.bench.latency import Latency, speed_ups
from launch.report.tables import markdown
from pipeline.version import description

PACKAGES = ("timm", "numpy")


def facts_of(
    subject: Subject, found: Sequence[Latency], *, device: torch.device, precision: str
) -> dict[str, Any]:
    """All that was measured, and on what, as JSON can hold it."""
    return {
        "model": subject.name,
        "task": subject.task,
        "policy": subject.policy,
        "schedules": {label: list(own) for label, own in subject.schedules.items()},
        "pixels": list(subject.size),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "precision": precision,
        "threads": torch.get_num_threads(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "dtem": description(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {name: version(name) for name in PACKAGES},
        "latencies": [_facts(own, found) for own in found],
    }


def _facts(own: Latency, found: Sequence[Latency]) -> dict[str, Any]:
    return {
        "batch": own.batch,
        "compiled": own.compiled,
        "which": own.which,
        "p50_ms": own.at(0.5),
        "p95_ms": own.at(0.95),
        "images_per_s": own.images_per_s,
        "speed_up": _speed_up(own, found),
        "peak_mib": own.peak_mib,
        "attention": own.attention,
        "ms": own.milliseconds,
    }


def _speed_up(own: Latency, found: Sequence[Latency]) -> float | None:
    """None for the unmerged model."""
    beside = (
        other
        for other in found
        if (other.batch, other.compiled, other.which) == (own.batch, own.compiled, UNMERGED)
    )
    return median(speed_ups(own, next(beside))) if own.which != UNMERGED else None


def conditions(facts: dict[str, Any]) -> str:
    """The line above the table."""
    height, width = facts["pixels"]
    merged = facts["schedules"].get(MERGED)
    schedule = f", reduction per block {merged}" if merged else ""
    return (
        f"{facts['model']}, {facts['task']}, policy {facts['policy']}{schedule}, {height}x{width} pixels\n"
        f"{facts['device']}, {facts['precision']}, "
        f"{facts['threads']} threads, {len(facts['latencies'][0]['ms'])} rounds, torch "
        f"{facts['versions']['torch']}, dtem {facts['dtem']}"
    )


def table(facts: dict[str, Any]) -> str:
    """A row for each batch size, model and way to run it."""
    columns = ["model", "batch", "compiled", "p50 ms", "p95 ms", "images/s", "speed-up", "peak MiB"]
    rows = [
        [
            own["which"],
            str(own["batch"]),
            own["compiled"],
            f"{own['p50_ms']:.2f}",
            f"{own['p95_ms']:.2f}",
            f"{own['images_per_s']:.1f}",
            "-" if own["speed_up"] is None else f"{own['speed_up']:.2f}",
            f"{own['peak_mib']:.0f}",
        ]
        for own in facts["latencies"]
    ]
    return markdown(columns, rows)
