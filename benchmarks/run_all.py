"""Runs the scripts of this folder one after the other: `make bench`.

As it is, each takes a short setting that shows that it runs, and its record goes to a new folder in
runs/bench. All of them have less than 15 minutes; what comes too late on a busy machine is named. With
--record it takes hours, and benchmarks/records is written anew. What a script needs and this machine lacks is
named, with the command for later.

    python benchmarks/run_all.py
    python benchmarks/run_all.py --record --only inference_cpu training_step_cpu --peer dtem=DTEM/deit.py
    benchmarks/gpu.sh                    # what is measured on a GPU, with torch, timm, triton and safetensors
"""

import argparse
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from claims import MADE, SHORT_SECONDS, TABLE
from gpu_claims import GPU, SECONDS
from peer_paths import PEERS, add_peers
from rows import Row

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--record", action="store_true", help="full settings; benchmarks/records is written anew"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        choices=[row.name for row in TABLE],
        help="records to make; default: all",
    )
    parser.add_argument(
        "--gpu",
        action="store_true",
        help="what is measured on a GPU, into one record gpu-DATE.json in $OUT, else in benchmarks/records",
    )
    parser.add_argument("--trial", action="store_true", help="with --gpu: tiny settings, on a CPU")
    add_peers(parser)
    args = parser.parse_args()
    if args.gpu:
        return run_gpu(args)
    work = Path("runs") if args.record else Path("runs/bench") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    records = Path("benchmarks/records") if args.record else work / "records"
    rows = [row for row in TABLE if row.name in (args.only or [row.name])]
    seconds = None if args.record or args.only else SHORT_SECONDS
    return run_all(rows, work, records, short=not args.record, peers=args.peer, seconds=seconds)


def run_gpu(args: argparse.Namespace) -> int:
    """The rows of a GPU."""
    rows = [row for row in GPU if row.name in (args.only or [row.name])]
    if args.trial:
        rows = [replace(row, needs=tuple(need for need in row.needs if need != "cuda")) for row in rows]
    records = Path(os.environ.get("OUT", "benchmarks/records"))
    seconds = None if args.trial else SECONDS
    return run_all(rows, Path("runs/bench"), records, short=args.trial, peers=args.peer, seconds=seconds)


def run_all(
    rows: list[Row],
    work: Path,
    records: Path,
    *,
    short: bool,
    peers: dict[str, str],
    seconds: float | None = None,
) -> int:
    """Tries every row and says at the end what became of each; 1 where one failed. seconds: of all rows;
    those that would begin later are named."""
    begun, lines, failed = time.monotonic(), [], False
    for place, row in enumerate(rows, 1):
        left = None if seconds is None else seconds - (time.monotonic() - begun)
        reason = lacking(row, peers) or ("no time is left" if left is not None and left <= 0 else "")
        if reason:
            kept = Path("benchmarks/records") / record_name(row)
            places = {peer: "PATH" for peer in row.needs if peer in PEERS} | peers
            later = row.command(Path("runs"), kept, short=False, peers=places)
            lines.append(f"  skipped  {row.name}: {reason}; then: {shlex.join(later)}")
            print(f"[{place}/{len(rows)}]{lines[-1]}", flush=True)
            continue
        command = row.command(work, records / record_name(row), short=short, peers=peers)
        print(f"[{place}/{len(rows)}]  {shlex.join(command)}", flush=True)
        limits = (None if short else row.limit, left)
        limit = min((limit for limit in limits if limit is not None), default=None)
        line, done = attempt(row, command, records, limit)
        lines.append(line)
        failed |= not done
    minutes = (time.monotonic() - begun) / 60
    print("\n".join(["", f"bench, {minutes:.1f} min:", *lines]))
    return int(failed)


def attempt(row: Row, command: list[str], records: Path, limit: float | None) -> tuple[str, bool]:
    """What became of a row, in a line, and whether all is well."""
    started, spent = time.monotonic(), core_seconds()
    steps = [*preparation(row), [sys.executable, *command[1:]]]
    done = all(run(step, on_gpu="cuda" in row.needs, limit=limit) for step in steps)
    minutes = (time.monotonic() - started) / 60
    took = f"{minutes:.1f} min, {core_seconds() - spent:.0f} s of cores"
    where = f", {records / record_name(row)}" if done else ""
    return f"  {'done   ' if done else 'FAILED '}  {row.name}: {took}{where}", done


def core_seconds() -> float:
    """Of all that this process has started and that has ended: unlike minutes the same on a busy machine."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def lacking(row: Row, peers: dict[str, str]) -> str:
    """What of the row's needs this machine does not have, in words; empty where all is there or can be
    made."""
    return ", and ".join(filter(None, (_lack(need, peers) for need in row.needs)))


def _lack(need: str, peers: dict[str, str]) -> str:
    if need == "cuda":
        import torch  # takes seconds: only where it is asked for

        return "" if torch.cuda.is_available() else "there is no CUDA device"
    if need.startswith("package "):
        name = need.removeprefix("package ")
        return "" if find_spec(name) else f"the package {name} is not installed"
    if need in PEERS:
        return "" if need in peers else f"{PEERS[need]} is not here (--peer {need}=PATH)"
    there = need in MADE or any((ROOT / "data" / need).glob("*.[ts]a*"))
    return "" if there else f"data/{need} has no shards or weights (benchmarks/README.md says which)"


def preparation(row: Row) -> list[list[str]]:
    """Commands that make what the row needs."""
    missing = [
        need for need in row.needs if need in MADE and not (ROOT / "data" / need / "manifest.json").exists()
    ]
    return [[str(Path(sys.executable).parent / "dtem"), *MADE[need]] for need in missing]


def record_name(row: Row) -> str:
    """The file of the row's record. That of a GPU has its day, as the machine is another each time."""
    return f"{row.into or row.name}{f'-{datetime.now():%Y-%m-%d}' if row.into == 'gpu' else ''}.json"


def run(command: list[str], *, on_gpu: bool, limit: float | None = None) -> bool:
    """Whether it ended well, within the limit in seconds; else it is ended with all that it started. What is
    measured on the CPU sees no GPU, and has one thread per process unless the script says otherwise."""
    hidden = {} if on_gpu else {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    quiet = {"OMP_NUM_THREADS": "1", "KINETO_LOG_LEVEL": "99", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    process = subprocess.Popen(
        command, cwd=ROOT, env={**quiet, **os.environ, **hidden}, start_new_session=True
    )
    try:
        return process.wait(limit) == 0
    except subprocess.TimeoutExpired:
        print(f"ended after {limit:.0f} s", flush=True)
        return False
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that `run` ends its script
    sys.exit(main())
