"""Runs that are stopped and killed, for benchmarks/soak.py: forked ones, which start in a second, and
supervised ones."""

import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from deepspeed_launch import environment
from tqdm import tqdm

from pipeline.config.load import from_plain
from pipeline.engine import zero  # noqa: F401 - imported once, before processes are forked
from pipeline.run_folder import complete_folders
from pipeline.train.faults.injection import Injection
from pipeline.train.loop import train
from pipeline.train.storage import read_checkpoint

ROOT = Path(__file__).resolve().parent.parent
WAIT = 600.0
"""Seconds after which what is waited for counts as a failure."""


def until(happened: Callable[[], bool], seconds: float = WAIT) -> bool:
    """Whether it happened in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if happened():
            return True
        time.sleep(0.02)
    return happened()


def steps_of(output: Path) -> int:
    """The last step that metrics.jsonl tells of; 0 before the first."""
    path = output / "metrics.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        lines = file.read().splitlines()
    return max(
        (json.loads(line)["step"] for line in lines if line[:1] == b"{" and line[-1:] == b"}"), default=0
    )


def last_report(output: Path) -> int:
    """When metrics.jsonl was written last, in nanoseconds; 0 before the first report."""
    path = output / "metrics.jsonl"
    return path.stat().st_mtime_ns if path.exists() else 0


def saved_step(output: Path) -> int:
    return max((int(folder.name[5:]) for folder in complete_folders(output / "checkpoints")), default=0)


def same_end(one: Path, other: Path) -> bool:
    """Whether the newest checkpoints of two runs have the same tensors, to the last bit, and the same place
    in their data."""
    a, b = (read_checkpoint(folder / f"checkpoints/step_{saved_step(folder):08d}") for folder in (one, other))
    facts = all(a.facts[name] == b.facts[name] for name in ("progress", "streams"))
    tensors = a.tensors.keys() == b.tensors.keys()
    return facts and tensors and all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Forked:
    """The ranks of a run, forked from this process, which never trains: so nothing is imported again."""

    def __init__(self, plain: dict[str, Any], ranks: int = 1, faults: tuple[str, ...] = ()):
        context, port = multiprocessing.get_context("fork"), free_port()
        arguments = [(plain, faults, rank, ranks, port) for rank in range(ranks)]
        self.ranks = [context.Process(target=_rank, args=each) for each in arguments]
        for process in self.ranks:
            process.start()

    def alive(self) -> bool:
        return all(process.is_alive() for process in self.ranks)

    def workers(self) -> list[psutil.Process]:
        try:
            return [one for rank in self.ranks for one in psutil.Process(rank.pid).children()]
        except psutil.NoSuchProcess:
            return []

    def signal(self, numbers: list[signal.Signals], rank: int) -> None:
        for number in numbers:
            try:
                os.kill(self.ranks[rank].pid or 0, number)
            except ProcessLookupError:
                return

    def ended(self) -> list[int | None]:
        """Exit codes; None for a rank that does not end, which is killed."""
        end = time.monotonic() + WAIT
        for process in self.ranks:
            process.join(max(0.0, end - time.monotonic()))
        codes = [process.exitcode for process in self.ranks]
        for process in self.ranks:
            process.kill()
        return codes


def _rank(plain: dict[str, Any], faults: tuple[str, ...], rank: int, ranks: int, port: int) -> None:
    torch.set_num_threads(1)
    # the lock of forked processes, which would stay taken where one is killed that has it
    tqdm.set_lock(threading.RLock())
    if ranks > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_PORT": port}
        os.environ |= {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in place.items()}
    log = os.open(f"{plain['output']}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    train(from_plain(plain), faults=Injection(faults))


class Supervised:
    """A run of several processes under torchrun, which starts them again."""

    def __init__(self, plain: dict[str, Any], processes: int):
        self.output = Path(plain["output"])
        config = self.output.with_suffix(".json")
        config.write_text(json.dumps(plain))
        self._command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
        self._command += [f"--master-port={free_port()}", "--max-restarts=1000", "--monitor-interval=0.5"]
        self._command += [str(ROOT / "launch/train.py"), "--config", str(config)]
        self.start()

    def start(self) -> None:
        with open(f"{self.output}.log", "a") as log:
            self.launcher = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=environment(), cwd=ROOT
            )

    def done(self) -> bool:
        return self.launcher.poll() is not None

    def kill(self, kind: str, rng: random.Random) -> float | None:
        """Kills a rank, a worker or the launcher; returns None where there is none now, else the seconds
        until the processes that cannot go on are gone: the ranks, and all that they have started."""
        try:
            launcher = psutil.Process(self.launcher.pid)
            ranks = [one for one in launcher.children() if "launch/train.py" in " ".join(one.cmdline())]
            below = [one for rank in ranks for one in rank.children(recursive=True)]
            victim = rng.choice({"launcher": [launcher], "rank": ranks, "worker": below}[kind])
            victim.kill()
        except (psutil.NoSuchProcess, IndexError):
            return None
        begin = time.monotonic()
        _, left = psutil.wait_procs(ranks + below, timeout=WAIT)
        for process in left:
            process.kill()
        return time.monotonic() - begin
