"""Timing and memory of several runs, measured in turns."""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from unittest.mock import patch

import torch

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler says of each use when it began
FEWEST = 3
"""Turns of a comparison, however long they take."""
MIB = 2**20


def in_turns(
    runs: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    warmup: int = 1,
    budget: float = float("inf"),
) -> dict[str, list[float]]:
    """Maps a run to the seconds of each of its calls. The runs take turns, A B C A B C, so that other load on
    the machine meets all of them alike.

    budget: seconds after which no new turn begins, once there are `FEWEST` (or `repeats`, if that is less).
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    begun, fewest = time.perf_counter(), min(FEWEST, repeats)
    for turn in range(warmup + repeats):
        if turn >= warmup + fewest and time.perf_counter() - begun > budget:
            break
        for name, run in runs.items():
            started = _now()
            run()
            if turn >= warmup:
                seconds[name].append(_now() - started)
            else:
                _now()
    return seconds


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def graphed(call: Callable[[], object]) -> Callable[[], object]:
    """The call as a CUDA graph that is replayed: nothing of it is launched by the host."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def comparison(name: str, ours: Sequence[float], peer: Sequence[float]) -> dict[str, Any]:
    """A result of a record: our values, a peer's in the same turns, and their ratio."""
    return {"name": name, "ours": summary(ours), "peer": summary(peer), "ratio": ratio(ours, peer)}


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median and spread; the quartiles of a single value are the value."""
    low, _, high = quantiles(values, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return {
        "median": rounded(median(values)),
        "quartiles": [rounded(low), rounded(high)],
        "min": rounded(min(values)),
        "max": rounded(max(values)),
        "n": len(values),
    }


def rounded(value: float) -> float:
    return float(f"{value:.5g}")


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, Any]:
    """Summary of the ratios of values of the same turn, which met the same load."""
    return summary([a / b for a, b in zip(numerator, denominator, strict=True)])


@dataclass
class Peak:
    """Bytes that tensors take at the highest, beside those that were there before."""

    nbytes: int = 0


@contextmanager
def peak_within(device: torch.device) -> Iterator[Peak]:
    """A part of the program whose peak is known behind it."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.nbytes = torch.cuda.max_memory_allocated(device) - before
        return
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True, acc_events=True) as profile:
        yield peak
    recorded: Any = profile.profiler
    held = 0
    for event in recorded.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak.nbytes = max(peak.nbytes, held)


def peak_added(run: Callable[[], object], device: torch.device) -> int:
    """The peak of a call. Unlike `peak_memory` it is the same on every machine, and on a CPU does not see
    what the allocator keeps."""
    run()  # makes what stays, such as the state of an optimizer
    with peak_within(device) as peak:
        run()
    return peak.nbytes


def peak_memory(job: Callable[..., Callable[[], object]], *args: Any, steps: int = 2) -> int:
    """Bytes that `steps` calls of job(*args)() add to the resident memory of a fresh process. `job` is a
    module-level function. glibc maps each tensor by itself there, so that holes in its heap, which differ
    from run to run, do not count."""
    with patch.dict(os.environ, {"MALLOC_MMAP_THRESHOLD_": "65536"}):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(_added_memory, job, args, steps).result()


def _added_memory(job: Callable[..., Callable[[], object]], args: tuple[Any, ...], steps: int) -> int:
    run = job(*args)
    before = _resident("VmRSS")
    for _ in range(steps):
        run()
    return _resident("VmHWM") - before


def _resident(line: str) -> int:
    """Bytes of a line of /proc/self/status. VmHWM is the most since this program began; `ru_maxrss` is at
    least what the process that started it held."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(text.split()[1]) for text in status if text.startswith(f"{line}:"))
