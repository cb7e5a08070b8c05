"""Faults of processes: one is killed, or asked to stop, or does not go on."""

import multiprocessing
import os
import signal
from threading import Timer
from typing import Literal

from pipeline.errors import ConfigError
from pipeline.processes import kill_all
from pipeline.train.faults.fault import FAULTS, AtStep, Victim


@FAULTS.register("kill")
class Kill(AtStep):
    """Ends the rank by SIGKILL, as the kernel does for want of memory; or all its data workers (`what`
    worker); or asks it to stop (`what` term)."""

    def __init__(self, *, step: int, rank: int | None = None, what: str = "rank"):
        super().__init__(step, rank)
        if what not in ("rank", "worker", "term"):
            raise ConfigError(f"fault 'kill': what is '{what}'; give rank, worker or term")
        self._what: Literal["rank", "worker", "term"] | str = what

    def prepare(self, run: Victim) -> None:
        if self._what == "worker":
            _require_workers(run, "kill@what=worker")

    def strike(self, run: Victim) -> None:
        if self._what == "worker":
            kill_all(_workers())
        else:
            os.kill(os.getpid(), signal.SIGKILL if self._what == "rank" else signal.SIGTERM)


@FAULTS.register("stall")
class Stall(AtStep):
    """Stops all data workers of the rank for some seconds. What they have ready is still used."""

    def __init__(self, *, step: int, seconds: float, rank: int | None = None):
        super().__init__(step, rank)
        self._seconds = positive("stall", seconds)

    def prepare(self, run: Victim) -> None:
        _require_workers(run, "stall")

    def strike(self, run: Victim) -> None:
        workers = _workers()
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        timer = Timer(self._seconds, _go_on, [workers])
        timer.daemon = True
        timer.start()


def positive(fault: str, seconds: float) -> float:
    """The seconds of a fault. Raises ConfigError where they are not above 0."""
    if not 0 < seconds < 10**6:
        raise ConfigError(f"fault '{fault}': seconds is {seconds}; give a number above 0")
    return seconds


def _workers() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def _go_on(workers: list[int]) -> None:
    for worker in workers:
        try:
            os.kill(worker, signal.SIGCONT)
        except ProcessLookupError:
            pass


def _require_workers(run: Victim, fault: str) -> None:
    if not any(run.config.tasks[name].data.workers for name in run.streams):
        raise ConfigError(
            f"fault '{fault}' needs data workers; give tasks.NAME.data.workers=1 or more, or train.workers"
        )
