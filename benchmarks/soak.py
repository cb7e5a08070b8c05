"""Kills and stops runs at random moments, and compares their ends with those of clean runs: `make soak`.

    python benchmarks/soak.py --kills 100 --signals 200 --stops 50

kills: SIGKILL to a rank, a data worker or the launcher of a supervised run of several processes; torchrun
restarts it, and this script restarts torchrun, as a scheduler does. signals: SIGTERM or SIGUSR1 to one rank
of a run of one and of two, in its steps, evaluations, saves and in a stall of its data workers; in the end it
is where a run is that was never disturbed. stops: for each task and for all together, a run that is stopped
or killed at a random time, and goes on.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests/helpers")]
from record import add_entry  # noqa: E402
from soak_runs import (  # noqa: E402
    WAIT,
    Forked,
    Supervised,
    last_report,
    same_end,
    saved_step,
    steps_of,
    until,
)
from tinyrun import tiny_plain, tiny_tasks_plain  # noqa: E402

import tasks  # noqa: E402, F401 - fills the registry
from pipeline.data.make.digits.scenes import CLASSES, MASK_CLASSES, digit_scenes_jobs  # noqa: E402
from pipeline.data.make.write import write_shards  # noqa: E402

RECORD = ROOT / "benchmarks/records/reliability.json"
GONE = 30.0
"""Seconds in which all processes of a run that has lost one shall be gone."""
STEPS = 12
"""Of a run that is stopped once."""
LONG = 60
"""Of a supervised run."""
ENDLESS = 10**6
SEVERAL = dict(type="deepspeed", zero_stage=1, precision="fp32")
"""The engine of several ranks."""
TASKS = ("digits", "captions", "masks", "together")


def preempt(digits: Path, work: Path, times: int, ranks: int, rng: random.Random) -> dict[str, Any]:
    """One run that is asked to stop over and over, and goes on each time."""
    settings = dict(steps=ENDLESS, log_every=1, eval_every=5, save_every=7)

    def plain(name: str) -> dict[str, Any]:
        engine = SEVERAL if ranks > 1 else dict(type="local")
        return tiny_plain(
            digits, work / f"{name}_{ranks}", data=dict(workers=1), train=settings, engine=engine
        )

    output, counts, slowest = Path(plain("preempted")["output"]), Counter[str](), 0.0
    while counts["signals"] < times:
        before, run = steps_of(output), Forked(plain("preempted"), ranks)
        if not until(lambda before=before, run=run: steps_of(output) > before or not run.alive()):
            raise RuntimeError(f"no step in {WAIT} s; see {output}.log")
        where = rng.choice(("in its work", "in its work", "in a stall"))
        for worker in run.workers() if where == "in a stall" else ():
            worker.suspend()
        time.sleep(rng.uniform(0, 1.5))
        begin = time.monotonic()
        numbers = rng.choices((signal.SIGTERM, signal.SIGUSR1), k=rng.choice((1, 2)))
        run.signal(numbers, rng.randrange(ranks))
        codes, step = run.ended(), steps_of(output)
        slowest = max(slowest, time.monotonic() - begin)
        counts.update(("signals", where))
        counts["exits_with_0"] += set(codes) == {0}
        counts["saves_of_the_last_step"] += saved_step(output) == step
        print(f"signal {counts['signals']}: {where}, exits {codes}, step {step}", flush=True)
    clean, last = plain("clean"), saved_step(output) + 3
    for each in (plain("preempted"), clean):
        Forked(each, ranks, (f"kill@step={last},what=term",)).ended()
    ends = {"steps": last, "ends_where_an_undisturbed_run_does": int(same_end(Path(clean["output"]), output))}
    return {"ranks": ranks, **counts, **ends, "slowest_exit_s": round(slowest, 1)}


def plain_of(task: str, digits: Path, output: Path) -> dict[str, Any]:
    """A short run of one task, or of three with what is shared among tasks."""
    shared = dict(balancing=dict(type="gradient_norm", every=4), optim=dict(ema_decay=0.9))
    settings = dict(steps=STEPS, log_every=1, save_every=5, eval_every=6)
    plain = tiny_tasks_plain(digits, output, train=settings, **(shared if task == "together" else {}))
    for each in plain["tasks"].values():
        each["data"]["workers"] = 1
    plain["tasks"] = {name: each for name, each in plain["tasks"].items() if task in (name, "together")}
    return plain


def stop(digits: Path, work: Path, task: str, times: int, rng: random.Random) -> dict[str, Any]:
    """Runs that are stopped or killed at a random time after their first step, and go on."""
    clean, counts = work / f"{task}_clean", Counter[str]()
    run = Forked(plain_of(task, digits, clean))
    until(lambda: steps_of(clean) > 0)
    begin = time.monotonic()
    run.ended()
    lasting = time.monotonic() - begin
    while counts["stopped"] < times:
        output = work / f"{task}_stopped"
        run = Forked(plain_of(task, digits, output))
        until(lambda run=run, output=output: steps_of(output) > 0 or not run.alive())
        time.sleep(rng.uniform(0, lasting))
        number = rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1))
        run.signal([number], 0)
        code, step = run.ended()[0], steps_of(output)
        if code == -signal.SIGKILL or (code == 0 and step < STEPS):
            again = Forked(plain_of(task, digits, output)).ended()[0]
            same = again == 0 and same_end(clean, output)
            counts.update(("stopped", number.name))
            counts["bit_identical_to_the_clean_run"] += same
            counts["different_steps"] = counts["different_steps"] | 1 << step
            print(
                f"{task}, {number.name} at step {step}: {'the same' if same else f'OTHER {again}'}",
                flush=True,
            )
        elif code != 0 and saved_step(output) < STEPS:  # a run that is over has its signals back
            raise RuntimeError(f"{task}: exit {code} after {number.name}; see {output}.log")
        shutil.rmtree(output)
    return {**counts, "different_steps": counts["different_steps"].bit_count()}


def kill(digits: Path, work: Path, times: int, processes: int, rng: random.Random) -> dict[str, Any]:
    """Supervised runs of which some process is killed over and over: three of four times after a new
    step, else at any time."""

    def plain(name: str) -> dict[str, Any]:
        settings = dict(steps=LONG, log_every=1, save_every=5)
        made = tiny_plain(
            digits, work / name, data=dict(workers=1, batch_size=2), train=settings, engine=SEVERAL
        )
        made["tasks"]["digits"]["data"]["val"] = None
        return made

    clean = Supervised(plain("supervised_clean"), processes)
    until(clean.done)
    counts, runs, same, slowest, lost = Counter[str](), 0, 0, 0.0, 0
    while counts["kills"] < times:
        run, runs = Supervised(plain(f"supervised_{runs}"), processes), runs + 1
        while saved_step(run.output) < LONG or run.launcher.poll() != 0:
            if run.done():
                run.start()
            if counts["kills"] == times:
                if not until(run.done) or run.launcher.returncode != 0:
                    raise RuntimeError(f"the run does not end; see {run.output}.log")
                continue
            in_steps = rng.random() < 0.75 and _goes_on(run)
            time.sleep(rng.uniform(0, 2 if in_steps else 8))
            kind = rng.choice(("rank", "worker", "launcher"))
            if (seconds := run.kill(kind, rng)) is None:
                continue
            reached, saved = steps_of(run.output), saved_step(run.output)
            counts.update(("kills", kind, "in_steps" if in_steps else "at_any_time"))
            counts["gone_later_than_30_s"] += seconds > GONE
            slowest, lost = max(slowest, seconds), max(lost, reached - saved)
            print(f"kill {counts['kills']}: {kind}, step {reached}, gone in {seconds:.1f} s", flush=True)
        same += same_end(clean.output, run.output)
    ends = {"runs": runs, "runs_that_end_where_the_clean_run_does": same, "most_steps_lost": lost}
    return {"processes": processes, "save_every": 5, **counts, **ends, "slowest_gone_s": round(slowest, 1)}


def _goes_on(run: Supervised) -> bool:
    """Waits for a step that the run has not told of before; returns whether there is one, and not its end."""
    saved, told = saved_step(run.output), last_report(run.output)
    if until(lambda: last_report(run.output) > told and steps_of(run.output) > saved or run.done()):
        return not run.done()
    raise RuntimeError(f"no step in {WAIT} s; see {run.output}.log")


CLAIMS = {
    "kills": "a supervised run of which processes are killed at random ends where a clean run ends",
    "signals": "a request to stop at a random time loses no step, on any rank",
    "stops": "a run that is stopped or killed at a random time ends where a clean one ends, by task",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--signals", type=int, default=0, help="half of them to one rank of two")
    parser.add_argument("--stops", type=int, default=0, help="for each of three tasks, and for all together")
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
            "signals": lambda: {
                f"signals to {ranks} ranks": preempt(digits, work, -(-args.signals // 2), ranks, rng)
                for ranks in (1, 2)
            },
            "stops": lambda: {f"stops: {task}": stop(digits, work, task, args.stops, rng) for task in TASKS},
            "kills": lambda: {"kills": kill(digits, work, args.kills, args.processes, rng)},
        }
        for name, part in parts.items():
            if getattr(args, name):
                found = [{"name": each, "counts": counts} for each, counts in part().items()]
                add_entry(args.record, CLAIMS[name], found, seeds=[args.seed])


if __name__ == "__main__":
    main()
