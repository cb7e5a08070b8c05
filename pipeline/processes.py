"""Processes that belong together: none outlives the one that it serves, and none that is done stays. They are
ended by their ids, never by a name."""

import ctypes
import faulthandler
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable
from multiprocessing import connection
from threading import Thread
from typing import NoReturn

import psutil

PARENT = "DTEM_PARENT"
"""Variable with the id of the agent of `dtem launch`, with which its ranks end."""
EXIT_WITHIN = 20.0
"""Seconds in which a command that is done, or has failed, is gone."""
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LAUNCHERS = {"TORCHELASTIC_RUN_ID", "CROSS_RANK"}
"""Variables by which torchrun and DeepSpeed's launcher are known as the parent."""


def end_with_parent(number: int = signal.SIGKILL, parent: int | None = None) -> None:
    """From now on this process receives the signal when the process that started it ends, however that ends;
    where that is no longer `parent`, at once. The last call counts. Linux only; elsewhere nothing happens.
    Called by the main thread of a child."""
    _prctl(_PR_SET_PDEATHSIG, int(number))
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), number)


def end_with_starter() -> None:
    """As `end_with_parent`, for a process of `multiprocessing`. Its parent may be a server, which lives as
    long as what it has forked: then this ends with the process that had it started. Called by its main
    thread."""
    end_with_parent()
    starter = multiprocessing.parent_process()
    if starter is not None and starter.pid != os.getppid():
        Thread(target=_end_behind, args=(starter.sentinel,), name="starter", daemon=True).start()


def _end_behind(sentinel: int) -> None:
    connection.wait([sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def end_with_agent() -> None:
    """From now on this process is killed when the agent of `dtem launch` that started it ends, if one did."""
    if PARENT in os.environ:
        end_with_parent(parent=int(os.environ[PARENT]))


def stop_with_launcher() -> None:
    """From now on this process is asked to stop (SIGTERM) when another launcher that started it is killed."""
    if PARENT not in os.environ and _LAUNCHERS & os.environ.keys():
        end_with_parent(signal.SIGTERM)


def adopt_orphans() -> None:
    """Descendants whose parent ends become children of this process, so that none gets out of sight."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def soon_gone(main: Callable[[], int]) -> int:
    """The exit status that `main` returns, in a process that ends with it within EXIT_WITHIN, whatever its
    exit waits for (a device, a thread, a group whose peer is lost). It writes its stacks then."""
    code = 1
    try:
        code = main()
        return code
    finally:
        Thread(target=_end_late, args=(code,), name="exit", daemon=True).start()
        # in the last part of an exit no thread of Python runs
        faulthandler.dump_traceback_later(EXIT_WITHIN + 5, exit=True)


def _end_late(code: int) -> NoReturn:
    time.sleep(EXIT_WITHIN)
    try:
        faulthandler.dump_traceback(all_threads=True)
    finally:
        end_at_once(code)


def kill_all(processes: Iterable[int]) -> None:
    """Ends processes by their ids; one that has ended meanwhile is passed over."""
    for process in processes:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            pass


def kill_descendants(seconds: float = 10.0) -> list[int]:
    """Kills all descendants of this process, those too that they start meanwhile. Returns the ids of those
    that are still there after so many seconds (in the kernel, for instance on a dead file system)."""
    until = time.monotonic() + seconds
    while True:
        left = psutil.Process().children(recursive=True)
        alive = [child for child in left if not _is_zombie(child)]
        for child in alive:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=0.2)
        if not left or time.monotonic() > until:
            return [child.pid for child in alive]


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def end_at_once(code: int) -> NoReturn:
    """Ends this process with an exit code, and all that it has started. Nothing is flushed or closed: for a
    process whose main thread does not answer."""
    try:
        kill_all(child.pid for child in psutil.Process().children(recursive=True))
    finally:
        os._exit(code)
