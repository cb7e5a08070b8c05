"""Reads small files, downloads large ones, and keeps copies of files. The one door to fsspec (and to aiohttp,
which carries its http)."""

import errno
import hashlib
import logging
import os
import random
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pipeline.data.shards.http_access import headers_for, refuse_unencrypted
from pipeline.data.shards.locations import is_remote
from pipeline.errors import ConfigError, OutageError, SampleError, StorageError
from pipeline.extras import EXTRAS, extra
from pipeline.files import NO_SPACE, replacing, sha256_of, sync

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
DEADLINE = 600.0
"""Seconds for one attempt at one file."""
STALL = 30.0
"""Seconds without a byte that end an attempt over http."""
_LASTING = NO_SPACE | {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EINVAL,
}
_LASTING |= {errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOLCK}
_TAGS = ("ETag", "etag", "Last-Modified", "LastModified", "mtime", "blob_id")
"""What the file systems call the tag of a content, the best first."""
_MAY_PASS = {408, 425, 429}
"""Statuses 4xx after which asking again may help; the others are a server's final refusal."""
OTHER_BYTES = "the bytes that came have another sha256 than the manifest says"
MAX_TEXT = 1 << 28
"""Bytes of the largest manifest or index that is read."""


class DiskFullError(StorageError):
    """The disk has no room for what is downloaded."""


class FileState(NamedTuple):
    """What tells a file from another one at its place."""

    size: int
    tag: str
    """Another one where the content may be another; empty where the storage gives none."""


def read_bytes(
    location: str, patience: float | None = None, sha256: str = "", state: FileState | None = None
) -> bytes:
    """The content of a small file. Raises FileNotFoundError for a missing file, SampleError for one that is
    too large, and StorageError for other failures.

    sha256: expected hash of a remote file. Other bytes, such as the error page of a proxy, are a failed
    attempt. state: of the file, where it is known.
    """
    if (state or file_state(location, patience)).size > MAX_TEXT:
        raise SampleError(f"{location} is larger than {MAX_TEXT >> 20} MiB; a manifest or index is not")
    if is_remote(location):
        return _remote(
            location,
            lambda filesystem: _whole(filesystem.cat_file(location, **_limit(location)), sha256),
            patience,
        )
    return persist(lambda: _local(location, lambda: Path(location).read_bytes()), patience)


def file_size(location: str, patience: float | None = None) -> int:
    """The size of a file in bytes. Raises FileNotFoundError for a missing file, StorageError for other
    failures."""
    return file_state(location, patience).size


def file_state(location: str, patience: float | None = None) -> FileState:
    """Size and tag of a file, by one request. Raises the errors of `file_size`."""
    if not is_remote(location):
        found = persist(lambda: _local(location, lambda: os.stat(location)), patience)
        return FileState(found.st_size, f"{found.st_ino} {found.st_mtime_ns} {found.st_ctime_ns}")
    info = _remote(location, lambda filesystem: filesystem.info(location, **_limit(location)), patience)
    if not isinstance(size := info["size"], int):
        raise SampleError(
            f"{location}: the server does not say its size; shards need one that does (Content-Length)"
        )
    return FileState(size, next((str(info[name]) for name in _TAGS if info.get(name)), ""))


def download(
    location: str, target: Path, num_bytes: int | None = None, sha256: str = "", patience: float | None = None
) -> None:
    """Copies a remote file to `target`, which appears whole or not at all. A wrong size or hash is a failed
    attempt.

    Raises FileNotFoundError for a missing file, DiskFullError, and StorageError for other failures.
    """
    target.parent.mkdir(parents=True, exist_ok=True)

    def attempt(filesystem: Any) -> None:
        # not by mkstemp, whose files nobody else may read
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            filesystem.get_file(location, str(part), **_limit(location))
            _verify(part, num_bytes, sha256)
            os.replace(part, target)
        except OSError as err:
            if err.errno in NO_SPACE:
                raise DiskFullError(
                    f"{location}: {target.parent} has no room for it ({err.strerror}); make room there"
                ) from err
            raise
        finally:
            part.unlink(missing_ok=True)

    _remote(location, attempt, patience)


def upload(path: Path, location: str, patience: float | None = None) -> None:
    """Copies a local file to a URL, where it appears as a whole. Raises StorageError, FileNotFoundError."""
    if (place := _on_disk(location)) is None:
        _remote(location, lambda filesystem: filesystem.put_file(str(path), location), patience)
    else:
        _put(place, lambda part: shutil.copyfile(path, part), patience)


def write_bytes(data: bytes, location: str, patience: float | None = None) -> None:
    """Writes a small file at a URL, where it appears as a whole. Raises StorageError."""
    if (place := _on_disk(location)) is None:
        _remote(location, lambda filesystem: filesystem.pipe_file(location, data), patience)
    else:
        _put(place, lambda part: part.write_bytes(data), patience)


def names_in(location: str, patience: float | None = None) -> list[str]:
    """Names in a folder at a URL, as it is now; none where there is no such folder. Raises StorageError."""

    def attempt(filesystem: Any) -> list[str]:
        filesystem.invalidate_cache()
        return [path.rstrip("/").rpartition("/")[2] for path in filesystem.ls(location, detail=False)]

    try:
        return _remote(location, attempt, patience)
    except FileNotFoundError:
        return []


def remove(location: str, patience: float | None = None) -> None:
    """Removes a file at a URL, if it is there. Raises StorageError."""

    def attempt(filesystem: Any) -> None:
        filesystem.invalidate_cache()
        if filesystem.exists(location):
            filesystem.rm_file(location)

    _remote(location, attempt, patience)


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
    status, number = _status(err), getattr(err, "errno", None)
    refused = status is not None and 400 <= status < 500 and status not in _MAY_PASS
    if refused or isinstance(err, PermissionError):
        return StorageError(f"{location}: access is denied ({err}); see the credentials of this account")
    kind = StorageError if number in _LASTING else OutageError
    return kind(f"{location}: {getattr(err, 'strerror', None) or str(err) or type(err).__name__}")


def _status(err: BaseException) -> int | None:
    """The status of http that an error is about: aiohttp's have it, those of the hub have the response."""
    found = getattr(err, "status", None) or getattr(getattr(err, "response", None), "status_code", None)
    return found if isinstance(found, int) else None


def _on_disk(location: str) -> Path | None:
    """The path of a URL of a file system; None for any other URL."""
    scheme, _, path = location.partition("://")
    return Path(path) if scheme == "file" else None


def _put(place: Path, write: Callable[[Path], object], patience: float | None) -> None:
    def action() -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as part:
            write(part)
        sync(place.parent)

    persist(lambda: _local(str(place), action), patience)


def _whole(data: bytes, sha256: str) -> bytes:
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise OSError(OTHER_BYTES)
    return data


def _verify(path: Path, num_bytes: int | None, sha256: str) -> None:
    size = path.stat().st_size
    if num_bytes is not None and size != num_bytes:
        raise OSError(f"{size} bytes came instead of {num_bytes}")
    if sha256 and sha256_of(path) != sha256:
        raise OSError(OTHER_BYTES)


def _local(location: str, action: Callable[[], T]) -> T:
    try:
        return action()
    except FileNotFoundError:
        raise
    except OSError as err:
        raise storage_error(location, err) from err
    except ValueError as err:
        raise SampleError(f"{location}: {err}") from err


def _remote(location: str, action: Callable[[Any], T], patience: float | None) -> T:
    """Returns `action(filesystem)`, see `persist`. Each backend has its own errors; any of them means that
    the transfer failed."""

    def attempt() -> T:
        try:
            return action(_filesystem(location))
        except (SampleError, ConfigError):
            raise
        except FileNotFoundError as err:
            if (
                (cause := err.__cause__) is None
                or isinstance(cause, FileNotFoundError)
                or _status(cause) in (404, 410)
            ):
                raise
            raise storage_error(location, cause) from err  # fsspec's http says so of whatever went wrong
        except Exception as err:  # noqa: BLE001 - see above
            raise storage_error(location, err) from err

    return persist(attempt, patience)


def _filesystem(location: str) -> Any:
    """The file system of the scheme alone: no URL chains. fsspec keeps one per process and thread, so this is
    cheap and safe over fork."""
    import fsspec

    scheme = location.split("://")[0]
    with extra(scheme) if scheme in EXTRAS else nullcontext():
        kind = fsspec.get_filesystem_class(scheme)
    if scheme == "http":
        refuse_unencrypted(location)
    return kind(**_options(scheme))


def _options(scheme: str) -> dict[str, Any]:
    if scheme == "file":
        return {"auto_mkdir": True}
    if scheme not in ("http", "https"):
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALL, sock_read=STALL)
    return {"client_kwargs": {"timeout": timeout, "middlewares": (_let_in,)}}


async def _let_in(request: Any, send: Callable[[Any], Awaitable[Any]]) -> Any:
    """Adds what the host of a request asks for. aiohttp calls it for each request, also for one that a server
    has sent on, whose headers are made anew."""
    request.headers.update(headers_for(str(request.url)))
    return await send(request)


def _limit(location: str) -> dict[str, float]:
    """The deadline of an attempt, for file systems that take one. That of the hub has timeouts of its own."""
    return {} if location.startswith("hf://") else {"timeout": DEADLINE}
