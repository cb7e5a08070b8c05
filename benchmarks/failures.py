"""How often a run of many GPUs fails, what a checkpoint costs, and how often to save: for `scale_sim.py`."""

import time
from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import timm
import torch

from pipeline.train.storage import read_checkpoint, write_checkpoint

PUBLISHED = {
    "Llama 3: 419 unplanned interruptions in 54 days on 16,384 GPUs": 419 / (54 * 24 * 16_384),
    "as Clockwork quotes: one in 1.8 h on 16,384 GPUs": 1 / (1.8 * 16_384),
    "as Clockwork quotes: one in 7.9 h on 1,024 GPUs": 1 / (7.9 * 1_024),
}
"""Failures of an hour of one GPU."""
BYTES_OF_PARAMETER = 16
"""float32: the weight, two moments, the average."""
RESTART = 5 / 60
"""Hours from a failure to the first step, as assumed."""


def hours_between(rate: float, gpus: int) -> float:
    """Mean hours between failures of a run. rate: failures of an hour of one GPU."""
    return 1 / (rate * gpus)


def interval(cost: float, between: float) -> float:
    """Hours of work between two saves that lose the least time, by Daly's formula of higher order; Young's is
    its first factor. cost: hours for which a save stops the steps; between: mean hours between failures."""
    if cost >= 2 * between:
        return between
    part = cost / (2 * between)
    return sqrt(2 * cost * between) * (1 + sqrt(part) / 3 + part / 9) - cost


def lost_share(every: float, cost: float, between: float, failures: int = 20_000) -> float:
    """Share of the time that is not work kept, in a simulated run with so many failures. every: hours of work
    between two saves; each failure takes the work since the last save, and RESTART."""
    lives = np.random.default_rng(0).exponential(between, failures)
    kept = np.floor(lives / (every + cost)) * every
    return float(1 - kept.sum() / (lives + RESTART).sum())


def saving(gib: float) -> dict[str, float]:
    """GiB/s of writing a checkpoint of so many GiB, hashed and synced, and of reading it with its hashes
    checked, on this machine's disk."""
    tensors = {
        f"model.blocks.{number}.weight": torch.full((1 << 24,), float(number))
        for number in range(max(1, round(gib * 2**30 / 2**26)))
    }
    size = sum(tensor.nbytes for tensor in tensors.values()) / 2**30
    with TemporaryDirectory(dir=".") as folder:
        started = time.perf_counter()
        made = write_checkpoint(Path(folder) / "checkpoints", 1, tensors, {})
        written = time.perf_counter() - started
        found = read_checkpoint(made)
        assert all(torch.equal(found.tensors[name], tensor) for name, tensor in tensors.items())
        read = time.perf_counter() - started - written
    return {"GiB written a second": round(size / written, 2), "GiB read a second": round(size / read, 2)}


def sizes(models: Sequence[str], rates: Sequence[float]) -> dict[str, Any]:
    """Parameters and GiB of a checkpoint of each model, and seconds to write it at each of `rates` in
    GiB/s."""
    found = {}
    for name in models:
        with torch.device("meta"):
            count = sum(p.numel() for p in timm.create_model(name, num_classes=1000).parameters())
        gib = count * BYTES_OF_PARAMETER / 2**30
        seconds = {f"seconds at {rate:g} GiB/s": round(gib / rate, 1) for rate in rates}
        found[name] = {"million parameters": round(count / 1e6, 1), "GiB": round(gib, 2), **seconds}
    return found


def schedule(gpus: int, rate: float, cost_seconds: float) -> dict[str, float]:
    """When to save at so many GPUs, and what is lost then, and at a quarter and at four times the interval.
    cost_seconds: for which a save stops the steps."""
    between, cost = hours_between(rate, gpus), cost_seconds / 3600
    best = interval(cost, between)
    lost = {
        f"lost %{label}": round(100 * lost_share(best * factor, cost, between), 2)
        for label, factor in ((", at a quarter", 0.25), ("", 1), (", at four times", 4))
    }
    return {
        "hours between failures": round(between, 2),
        "minutes between saves": round(60 * best, 1),
        **lost,
    }
