"""The lock of a run's folder: one run at a time writes into it. The lock ends with its process, however that
ends."""

import fcntl
import os
import platform
import stat
import time
from pathlib import Path
from typing import IO
from weakref import WeakValueDictionary

from pipeline.errors import ConfigError

NAME = ".lock"
MOST_READ = 200
"""Characters that are read of a lock file, which describes its holder."""
_of_this_process: WeakValueDictionary[str, IO[str]] = WeakValueDictionary()
"""Locked files by their folder. A record lock does not stop its own process, and ends when that closes any
file of the same path."""


def locked(folder: Path) -> IO[str]:
    """Makes the folder, and locks it until the returned file is closed. Raises ConfigError that names the
    holder of a locked folder.

    A POSIX record lock, which workers do not inherit: it is gone at once when a run is killed. On a network
    file system it holds between machines only where server and mount do locks; a folder that cannot be locked
    is refused.
    """
    path, here = folder / NAME, os.path.realpath(folder)
    if (other := _of_this_process.get(here)) is not None and not other.closed:
        raise ConfigError(
            f"{folder} is in use by another run of this process; close it, or give another output"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as err:
        raise ConfigError(
            f"output {folder} cannot be made or written to: {err.strerror}; give another folder"
        ) from err
    facts = os.fstat(handle)
    if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
        os.close(handle)
        raise ConfigError(f"{path} is no file of its own; remove it")
    file = os.fdopen(handle, "r+", encoding="utf-8", errors="replace")
    try:
        _lock(file, path)
    except BaseException:
        file.close()
        raise
    _of_this_process[here] = file
    return file


def _lock(file: IO[str], path: Path) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = file.read(MOST_READ).strip() or "it does not say which"
        raise ConfigError(
            f"{path.parent} is in use by another run ({holder}); wait for its end, or give another output"
        ) from None
    except OSError as err:
        raise ConfigError(
            f"{path.parent} cannot be locked against a second run ({err.strerror}); give an output on "
            "another disk"
        ) from err
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    file.flush()
