"""Patience with storage that fails: what is asked again, how long, and what a failure means."""

import errno
import logging
import random
import time
from collections.abc import Callable
from itertools import count
from typing import TypeVar

from pipeline.errors import OutageError, StorageError
from pipeline.files import NO_SPACE

log = logging.getLogger(__name__)
T = TypeVar("T")
PATIENCE = 15.0
"""Seconds for which storage that fails is asked again before a run has begun; within a run it is given
longer."""
PAUSE = 0.25
"""Seconds before the second attempt, about; each further pause is twice as long, up to LONGEST_PAUSE."""
LONGEST_PAUSE = 15.0
WARN_EVERY = 60.0
"""Seconds between warnings while storage fails."""
_LASTING = NO_SPACE | {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EINVAL,
}
_LASTING |= {errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOLCK}
_MAY_PASS = {408, 425, 429}
"""Statuses 4xx after which asking again may help; the others are a server's final refusal."""


def persist(action: Callable[[], T], patience: float | None = None) -> T:
    """Returns `action()`. While it raises OutageError it is called again, after a pause with jitter. Raises
    StorageError once `patience` seconds are over; None is PATIENCE."""
    patience = PATIENCE if patience is None else patience
    start = warned = time.monotonic()
    for attempt in count():
        try:
            return action()
        except OutageError as err:
            now, longest = time.monotonic(), min(LONGEST_PAUSE, PAUSE * 2 ** min(attempt, 20))
            pause = longest * (0.5 + random.Random().random())
            if now + pause > start + patience:
                tried = f"{attempt + 1} attempts in {now - start:.0f} s"
                raise StorageError(f"{err} ({tried}); see that the storage answers, then resume") from err
            if now - warned >= min(WARN_EVERY, patience / 4):
                warned = now
                log.warning("%s for %.0f s; asking on until %.0f s", err, now - start, patience)
            time.sleep(pause)
    raise AssertionError("count does not end")


def storage_error(location: str, err: BaseException) -> StorageError:
    """The StorageError that a failure to read `location` means: an OutageError where asking again may
    help."""
    if isinstance(err, StorageError):
        return err
    if isinstance(err, FileNotFoundError):
        return StorageError(f"{location} is missing; restore it, then resume")
    status, number = status_of(err), getattr(err, "errno", None)
    refused = status is not None and 400 <= status < 500 and status not in _MAY_PASS
    if refused or isinstance(err, PermissionError):
        return StorageError(f"{location}: access is denied ({err}); see the credentials of this account")
    kind = StorageError if number in _LASTING else OutageError
    return kind(f"{location}: {getattr(err, 'strerror', None) or str(err) or type(err).__name__}")


def status_of(err: BaseException) -> int | None:
    """The status of http that an error is about: aiohttp's have it, those of the hub have the response."""
    found = getattr(err, "status", None) or getattr(getattr(err, "response", None), "status_code", None)
    return found if isinstance(found, int) else None
