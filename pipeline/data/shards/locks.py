"""Files of a folder that processes share: leases of those that are read, and locks of those that are made.

A lock belongs to an open file, which forked processes share. So it is given back by name, not only by closing
one of its descriptors.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

POLL = 0.05
"""Seconds between two looks at a lock that another process holds."""


def leased(path: Path, num_bytes: int) -> int | None:
    """A descriptor of the file with a lease, until `release`; None where it is not there in this size. A file
    that is deleted at the same time is whole in the descriptor."""
    file = opened(path)
    if file is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
        if os.fstat(file).st_size == num_bytes:
            return file
    except BaseException:
        os.close(file)
        raise
    release(file)
    return None


def opened(path: Path) -> int | None:
    """A descriptor of the file, which is used from now on; None where there is none that is trusted: a link,
    or a file that is neither this user's, nor of the owner of its folder, nor root's."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as err:
        if isinstance(err, FileNotFoundError | PermissionError) or path.is_symlink():
            return None
        raise
    if os.fstat(file).st_uid not in (os.geteuid(), os.stat(path.parent).st_uid, 0):
        os.close(file)
        return None
    with suppress(OSError):
        os.utime(file)
    return file


def release(file: int) -> None:
    """Ends a lease or a lock, also for forked processes, and closes the file."""
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


@contextmanager
def locked(path: Path, patience: float) -> Iterator[None]:
    """While it is open, nobody else has the lock file, which is removed at the end. Raises BlockingIOError
    where others have it for `patience` seconds."""
    give_up = time.monotonic() + patience
    while (file := _lock(path)) is None:
        if time.monotonic() >= give_up:
            raise BlockingIOError(f"{path} is locked")
        time.sleep(POLL)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        release(file)


def remove_if_left(path: Path) -> bool:
    """Removes a lock file that nobody holds, as its process was killed. Returns whether it was one."""
    file = _lock(path, make=False)
    if file is None:
        return False
    path.unlink(missing_ok=True)
    release(file)
    return True


def delete(path: Path) -> bool:
    """Deletes the file unless somebody has a lease of it. Returns whether it is gone."""
    try:
        # NFS gives an exclusive lock to a descriptor that may write, and to no other
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except PermissionError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        release(file)


def _lock(path: Path, *, make: bool = True) -> int | None:
    """A descriptor of a lock file that this process holds; None where another holds it, or it was removed
    meanwhile."""
    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if make else 0), 0o600)
    except FileNotFoundError:
        if make:
            raise
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file), os.stat(path)):
            return file
    except (BlockingIOError, FileNotFoundError):
        os.close(file)
        return None
    except BaseException:
        os.close(file)
        raise
    release(file)
    return None
