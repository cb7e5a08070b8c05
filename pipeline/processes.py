"""Processes that belong together: none outlives the one that it serves."""

import ctypes
import faulthandler
import os
import signal
from collections.abc import Iterable
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
EXIT_WITHIN = 20.0
"""Seconds in which a command that is done, or has failed, is gone."""
_LAUNCHERS = {"TORCHELASTIC_RUN_ID", "CROSS_RANK"}
"""Variables by which torchrun and DeepSpeed's launcher are known as the parent."""


def end_with_parent(number: int = signal.SIGKILL) -> None:
    """From now on this process receives the signal when the process that started it ends, however that ends.
    Linux only; elsewhere nothing happens. Called by the main thread of a child."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def stop_with_launcher() -> None:
    """From now on this process is asked to stop (SIGTERM) when the launcher that started it is killed."""
    if _LAUNCHERS & os.environ.keys():
        end_with_parent(signal.SIGTERM)


def limit_exit(seconds: float = EXIT_WITHIN) -> None:
    """From now on this process ends within so many seconds, whatever its exit waits for (a device, a
    thread, a group whose peer is lost). It writes its stacks then, and ends with 1."""
    faulthandler.dump_traceback_later(seconds, exit=True)


def kill_all(processes: Iterable[int]) -> None:
    """Ends processes by their ids; one that has ended meanwhile is passed over."""
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            pass


def end_at_once(code: int) -> NoReturn:
    """Ends this process with an exit code, and all that it has started. Nothing is flushed or closed: for a
    process whose main thread does not answer."""
    # imported here, as data workers import this file and need it not
    import psutil

    try:
        kill_all(child.pid for child in psutil.Process().children(recursive=True))
    finally:
        os._exit(code)
