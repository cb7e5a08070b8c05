"""Reads small files and downloads large ones. The one door to fsspec (and to aiohttp, which carries its http)."""

import hashlib
import os
import random
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from pipeline.data.source import is_remote
from pipeline.errors import SampleError

T = TypeVar("T")
ATTEMPTS = 5
DEADLINE = 600.0
"""Seconds for all attempts at one file together."""
PAUSE = 0.25
"""Seconds before the second attempt, about; each further pause is twice as long."""
STALL = 60.0
"""Seconds without a byte that end an attempt over http."""
MAX_TEXT = 1 << 28
"""Bytes of the largest manifest or index that is read."""
_PACKAGES = {"s3": "s3fs (pip install dtem-pipeline[s3])", "gs": "gcsfs (pip install dtem-pipeline[gs])"}


def read_bytes(location: str) -> bytes:
    """A whole small file. A missing one raises FileNotFoundError, other failures SampleError."""
    if file_size(location) > MAX_TEXT:
        raise SampleError(f"{location} is larger than {MAX_TEXT >> 20} MiB; a manifest or index is not")
    if is_remote(location):
        return _retry(location, lambda filesystem, left: filesystem.cat_file(location, timeout=left))
    return _local(location, lambda: Path(location).read_bytes())


def file_size(location: str) -> int:
    """Bytes. A missing file raises FileNotFoundError, other failures SampleError."""
    if is_remote(location):
        size = _retry(location, lambda filesystem, left: filesystem.info(location, timeout=left)["size"])
        if not isinstance(size, int):
            raise SampleError(f"{location}: the server does not say its size; shards need one that does (Content-Length)")
        return size
    return _local(location, lambda: os.stat(location).st_size)


def download(location: str, target: Path, num_bytes: int | None = None, sha256: str = "") -> None:
    """Copies a remote file to `target`, which appears whole or not at all; a wrong size or hash counts as a failed attempt."""
    target.parent.mkdir(parents=True, exist_ok=True)

    def attempt(filesystem: Any, left: float) -> None:
        handle, part = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
        os.close(handle)
        try:
            filesystem.get_file(location, part, timeout=left)
            _verify(Path(part), num_bytes, sha256)
            os.replace(part, target)
        finally:
            Path(part).unlink(missing_ok=True)

    _retry(location, attempt)


def sha256_of(path: Path | str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, num_bytes: int | None, sha256: str) -> None:
    size = path.stat().st_size
    if num_bytes is not None and size != num_bytes:
        raise OSError(f"{size} bytes came instead of {num_bytes}")
    if sha256 and sha256_of(path) != sha256:
        raise OSError("the bytes that came have another sha256 than the manifest says")


def _local(location: str, action: Callable[[], T]) -> T:
    try:
        return action()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as err:
        raise SampleError(f"{location}: {err}") from err


def _retry(location: str, action: Callable[[Any, float], T]) -> T:
    """`action(filesystem, seconds left)`, tried again after a pause that doubles, within ATTEMPTS and DEADLINE."""
    end = time.monotonic() + DEADLINE
    for attempt in count(1):
        try:
            return action(_filesystem(location), end - time.monotonic())
        except (FileNotFoundError, SampleError):
            raise
        except PermissionError as err:
            raise SampleError(f"{location}: access is denied; see the credentials of this account") from err
        except Exception as err:  # noqa: BLE001 - each backend has its own errors, and each of them means that the transfer failed
            pause = PAUSE * 2 ** (attempt - 1) * (0.5 + random.Random().random())
            if attempt >= ATTEMPTS or time.monotonic() + pause > end:
                reason = str(err) or type(err).__name__
                raise SampleError(f"{location}: {reason} (after {attempt} attempts); see that the server answers, then resume") from err
            time.sleep(pause)
    raise AssertionError("count does not end")


def _filesystem(location: str) -> Any:
    """The file system of the scheme alone: no URL chains. fsspec keeps one per process and thread, so this is cheap and safe over fork."""
    import fsspec

    scheme = location.split("://")[0]
    try:
        return fsspec.filesystem(scheme, **_options(scheme))
    except ImportError as err:
        raise SampleError(f"{location}: '{scheme}' needs {_PACKAGES.get(scheme, scheme)}") from err


def _options(scheme: str) -> dict[str, Any]:
    if scheme not in ("http", "https"):
        return {}
    import aiohttp

    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=STALL, sock_read=STALL)}}
