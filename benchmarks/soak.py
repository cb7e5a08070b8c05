"""Kills and stops runs at random moments, and compares their ends with those of clean runs: `make soak`.

    python benchmarks/soak.py --kills 100 --signals 200 --stops 50

kills: SIGKILL to a rank, a data worker or the launcher of a supervised run of several processes; torchrun
restarts it, and this script restarts torchrun, as a scheduler does. signals: SIGTERM or SIGUSR1 to a run of
one process, in its start, steps, evaluations, saves and in a stall of its data worker. stops: for each task,
a run that is stopped or killed before a random step, and goes on.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests/helpers")]
import psutil  # noqa: E402
import torch  # noqa: E402
from deepspeed_launch import environment  # noqa: E402
from record import add_entry  # noqa: E402
from tinyrun import tiny_plain, tiny_tasks_plain  # noqa: E402

import tasks  # noqa: E402, F401 - fills the registry
from pipeline.config.load import from_plain  # noqa: E402
from pipeline.data.make.digits.scenes import CLASSES, MASK_CLASSES, digit_scenes_jobs  # noqa: E402
from pipeline.data.make.write import write_shards  # noqa: E402
from pipeline.run_folder import complete_folders  # noqa: E402
from pipeline.train.faults.injection import Injection  # noqa: E402
from pipeline.train.loop import train  # noqa: E402
from pipeline.train.storage import read_checkpoint  # noqa: E402

RECORD = ROOT / "benchmarks/records/reliability.json"
WAIT = 600.0
"""Seconds after which what is waited for counts as a failure."""
GONE = 30.0
"""Seconds in which all processes of a run that has lost one shall be gone."""
STEPS = 12
"""Of a run that is stopped once."""
ENDLESS = 10**6


def until(happened: Callable[[], bool], seconds: float = WAIT) -> bool:
    """Whether it happened in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if happened():
            return True
        time.sleep(0.05)
    return happened()


def steps_of(output: Path) -> int:
    """The last step that metrics.jsonl tells of; 0 before the first."""
    path = output / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def saved_step(output: Path) -> int:
    return max((int(folder.name[5:]) for folder in complete_folders(output / "checkpoints")), default=0)


def same_end(one: Path, other: Path) -> bool:
    """Whether the newest checkpoints of two runs have the same tensors, to the last bit."""
    a, b = (
        read_checkpoint(folder / f"checkpoints/step_{saved_step(folder):08d}").tensors
        for folder in (one, other)
    )
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def started(plain: dict[str, Any], faults: tuple[str, ...] = ()) -> multiprocessing.Process:
    """A run in a process of its own, forked from this one, which never trains: so nothing is imported
    again."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_run, args=(plain, faults))
    process.start()
    return process


def _run(plain: dict[str, Any], faults: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    log = os.open(f"{plain['output']}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    train(from_plain(plain), faults=Injection(faults))


def ended(process: multiprocessing.Process) -> int | None:
    """Exit code; None for a process that does not end, which is killed."""
    process.join(WAIT)
    if process.exitcode is None:
        process.kill()
    return process.exitcode


def preempt(digits: Path, work: Path, times: int, rng: random.Random) -> dict[str, Any]:
    """One run that is asked to stop over and over, and goes on each time."""
    output = work / "preempted"
    settings = dict(steps=ENDLESS, log_every=1, eval_every=5, save_every=7)
    plain = tiny_plain(digits, output, data=dict(workers=1), train=settings)
    counts: Counter[str] = Counter()
    slowest = 0.0
    for number in range(times):
        before, where = steps_of(output), rng.choice(("start", "any", "any", "stall"))
        process = started(plain)
        if where != "start":
            until(lambda before=before, process=process: steps_of(output) > before or not process.is_alive())
        if where == "stall":
            for worker in psutil.Process(process.pid).children():
                worker.suspend()
        time.sleep(rng.uniform(0, 1.5))
        begin = time.monotonic()
        for _ in range(rng.choice((1, 2))):
            os.kill(process.pid or 0, rng.choice((signal.SIGTERM, signal.SIGUSR1)))
        code, step = ended(process), steps_of(output)
        slowest = max(slowest, time.monotonic() - begin)
        counts[where] += 1
        counts["exit 0"] += code == 0
        counts["every step saved"] += saved_step(output) == step
        print(
            f"signal {number + 1}: {where}, exit {code}, step {step}, saved {saved_step(output)}", flush=True
        )
    return {"signals": times, **counts, "slowest_exit_s": round(slowest, 1)}


def plain_of(task: str, digits: Path, output: Path) -> dict[str, Any]:
    plain = tiny_tasks_plain(digits, output, train=dict(steps=STEPS, log_every=1, save_every=5, eval_every=6))
    plain["tasks"] = {task: plain["tasks"][task]}
    plain["tasks"][task]["data"]["workers"] = 1
    return plain


def stop(digits: Path, work: Path, times: int, rng: random.Random) -> dict[str, Any]:
    """For each task: runs that are stopped or killed before a random step, and go on."""
    counts: Counter[str] = Counter()
    for task in ("digits", "captions", "masks"):
        clean = work / f"{task}_clean"
        ended(started(plain_of(task, digits, clean)))
        for number in range(times):
            output = work / f"{task}_{number}"
            fault = f"kill@step={rng.randrange(STEPS)},what={rng.choice(('rank', 'term'))}"
            codes = [ended(started(plain_of(task, digits, output), (fault,))) for _ in range(2)]
            same = codes[1] == 0 and same_end(clean, output)
            counts[f"{task}: stopped"] += 1
            counts[f"{task}: bit-identical"] += same
            print(f"{task} {fault}: exits {codes}, {'the same' if same else 'OTHER'}", flush=True)
            shutil.rmtree(output)
    return dict(counts)


class Supervised:
    """A run of several processes under torchrun."""

    def __init__(self, plain: dict[str, Any], processes: int):
        self.output = Path(plain["output"])
        config = self.output.with_suffix(".json")
        config.write_text(json.dumps(plain))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
        self._command += [f"--master-port={port}", "--max-restarts=1000", "--monitor-interval=0.5"]
        self._command += [str(ROOT / "launch/train.py"), "--config", str(config)]
        self.start()

    def start(self) -> None:
        with open(f"{self.output}.log", "a") as log:
            self.launcher = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=environment(), cwd=ROOT
            )

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Those of now: launcher, ranks, workers."""
        launcher = psutil.Process(self.launcher.pid)
        ranks = [child for child in launcher.children() if "launch/train.py" in " ".join(child.cmdline())]
        return {
            "launcher": [launcher],
            "rank": ranks,
            "worker": [one for rank in ranks for one in rank.children()],
        }

    def done(self) -> bool:
        return self.launcher.poll() is not None

    def kill(self, kind: str, rng: random.Random) -> float | None:
        """Kills one; None where there is none now. Returns the seconds until the processes that cannot go on
        are gone: all of them, or with a worker its rank and the other ranks."""
        try:
            there = self.processes()
            victim = rng.choice(there[kind])
            victim.kill()
        except (psutil.NoSuchProcess, IndexError):
            return None
        begin = time.monotonic()
        gone, left = psutil.wait_procs(there["rank"] + there["worker"], timeout=WAIT)
        for process in left:
            process.kill()
        return time.monotonic() - begin


def kill(digits: Path, work: Path, times: int, processes: int, rng: random.Random) -> dict[str, Any]:
    """Supervised runs of which some process is killed over and over."""

    def plain(name: str) -> dict[str, Any]:
        settings = dict(steps=60, log_every=1, save_every=5)
        engine = dict(type="deepspeed", zero_stage=1, precision="fp32")
        made = tiny_plain(
            digits, work / name, data=dict(workers=1, batch_size=2), train=settings, engine=engine
        )
        made["tasks"]["digits"]["data"]["val"] = None
        return made

    clean = Supervised(plain("supervised_clean"), processes)
    until(clean.done)
    counts: Counter[str] = Counter()
    runs = same = slow = 0
    slowest = 0.0
    while counts.total() < times:
        run, runs, reached = Supervised(plain(f"supervised_{runs}"), processes), runs + 1, 0
        end = time.monotonic() + WAIT * (times + 1)
        while time.monotonic() < end:
            until(lambda run=run, reached=reached: steps_of(run.output) > reached or run.done())
            if run.done() and run.launcher.returncode == 0 and saved_step(run.output) == 60:
                break
            if run.done():
                run.start()
            elif counts.total() < times:
                time.sleep(rng.uniform(0, 2))
                kind = rng.choice(("rank", "worker", "launcher"))
                reached = steps_of(run.output)
                if (seconds := run.kill(kind, rng)) is not None:
                    counts[kind] += 1
                    slow += seconds > GONE
                    slowest = max(slowest, seconds)
                    print(
                        f"kill {counts.total()}: {kind} at step {reached}, gone in {seconds:.1f} s",
                        flush=True,
                    )
            else:
                reached = steps_of(run.output)
        same += same_end(clean.output, run.output)
    return {
        "kills": counts.total(),
        **counts,
        "processes": processes,
        "runs": runs,
        "ends_bit_identical_to_the_clean_run": same,
        "gone_later_than_30_s": slow,
        "slowest_gone_s": round(slowest, 1),
    }


CLAIMS = {
    "kills": "a supervised run of which processes are killed at random ends where a clean run ends",
    "signals": "a request to stop at a random time loses no step",
    "stops": "a run that is stopped or killed before a random step ends where a clean one ends, by task",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--signals", type=int, default=0)
    parser.add_argument("--stops", type=int, default=0, help="for each of three tasks")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, default=RECORD)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak_") as folder:
        work, rng = Path(folder), random.Random(args.seed)
        digits = work / "digits"
        jobs = digit_scenes_jobs(train=80, val=25, size=32, shard_size=32)
        write_shards(jobs, digits, classes=CLASSES, mask_classes=MASK_CLASSES)
        parts = {
            "signals": lambda: preempt(digits, work, args.signals, rng),
            "stops": lambda: stop(digits, work, args.stops, rng),
            "kills": lambda: kill(digits, work, args.kills, args.processes, rng),
        }
        for name, part in parts.items():
            if getattr(args, name):
                add_entry(args.record, CLAIMS[name], [{"name": name, "counts": part()}], seeds=[args.seed])


if __name__ == "__main__":
    main()
