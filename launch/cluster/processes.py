"""Processes of one host: how a process ends with its parent, and how all descendants of one are ended.

By recorded pids and their start times, never by a name. Linux only.
"""

import ctypes
import os
import signal
import time

import psutil

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def die_with_parent(parent: int) -> None:
    """The kernel kills this process as soon as its parent, of pid `parent`, is gone, however that ended."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """Descendants whose parent ends become children of this process, so that none gets out of sight."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def kill_descendants(seconds: float = 10.0) -> list[int]:
    """Kills all descendants of this process, those too that they start meanwhile. Returns the pids that are
    still there after so many seconds (in the kernel, for instance on a dead file system)."""
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
