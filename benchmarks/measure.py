"""Measuring in turns, and records that say how they were made (docs/design.md section 8)."""

import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch

ROOT = Path(__file__).resolve().parent.parent


def in_turns(runs: Mapping[str, Callable[[], object]], repeats: int, *, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of every call. The runs take turns, A B C A B C, so that whatever else the machine does meets all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warmup + repeats):
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


def summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(median(values), 4), "min": round(min(values), 4), "max": round(max(values), 4), "n": len(values)}


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Of the values of the same turn, which met the same machine."""
    return summary([a / b for a, b in zip(numerator, denominator, strict=True)])


def peak_memory(job: Callable[..., Callable[[], object]], *args: Any, steps: int = 2) -> int:
    """Bytes that `steps` calls of job(*args)() add to the resident memory of a fresh process. `job` is a module-level function."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_added_memory, job, args, steps).result()


def _added_memory(job: Callable[..., Callable[[], object]], args: tuple[Any, ...], steps: int) -> int:
    run = job(*args)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    for _ in range(steps):
        run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def write_record(path: str | Path, claim: str, results: list[dict[str, Any]], *, seeds: Sequence[int] = (0,)) -> None:
    """Writes the record, and prints it."""
    record = {
        "claim": claim,
        "command": shlex.join(["python", *sys.argv]),
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": _hardware(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "timm": timm.__version__},
        "seeds": list(seeds),
        "results": results,
    }
    text = json.dumps(record, indent=2)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text + "\n")
    print(text)
    print(f"wrote {path}")


def _commit() -> str:
    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "pipeline", "tasks", "benchmarks/*.py")
    return git("rev-parse", "HEAD") + ("+changes" if changed else "")


def _hardware() -> dict[str, Any]:
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
