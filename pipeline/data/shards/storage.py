"""Reads small files, downloads large ones, and keeps copies of files. The one door to fsspec (and to aiohttp,
which carries its http)."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pipeline.data.shards.http_access import headers_for, refuse_unencrypted
from pipeline.data.shards.locations import is_remote
from pipeline.data.shards.patience import persist, status_of, storage_error
from pipeline.errors import ConfigError, SampleError, StorageError
from pipeline.extras import EXTRAS, extra
from pipeline.files import NO_SPACE, replacing, sha256_of, sync

T = TypeVar("T")
DEADLINE = 600.0
"""Seconds for one attempt at one file."""
STALL = 30.0
"""Seconds without a byte that end an attempt over http."""
_TAGS = ("ETag", "etag", "Last-Modified", "LastModified", "mtime", "blob_id")
"""What the file systems call the tag of a content, the best first."""
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
                or status_of(cause) in (404, 410)
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
