"""Writing results into a folder: a file is there as a whole or not at all, and never elsewhere through a
link.

A run may come from a stranger, and a folder that was unpacked from an archive may hold symbolic links to
anywhere.
"""

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import ConfigError

NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
"""Errors of a full disk."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside `path`, with the same suffix, to write to. At the end it is synced and takes the
    place of `path`.

    A link at `path` is replaced, not followed. After an error the old file is still there. Raises OSError,
    which names the file where the disk is full.
    """
    part = path.with_name(f".partial-{secrets.token_hex(4)}-{path.name}")
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield part
        sync(part)
        part.rename(path)
    except BaseException as err:
        if isinstance(err, OSError) and err.errno in NO_SPACE and err.filename is None:
            err.filename = str(path)
        part.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> Path:
    """Writes the text as UTF-8, see `replacing`. Returns the path."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="")
    return path


def write_bytes(path: Path, data: bytes) -> None:
    """Writes the bytes, see `replacing`."""
    with replacing(path) as part:
        part.write_bytes(data)


def file_place(path: str, option: str = "--out") -> Path:
    """The path of a file that a command will write, whose folder is made: asked before the work, of which the
    file is the result. Raises ConfigError where no file can be there."""
    place = Path(path)
    if place.is_dir():
        raise ConfigError(f"{option} {place} is a folder; give the name of a file")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ConfigError(f"{option} {place}: its folder cannot be made: {err.strerror}") from err
    return place


def folder_within(root: Path, name: str) -> Path:
    """The folder `name` in `root`, which is made if it is missing. Raises ConfigError if it is a link;
    `root`, which the user names, may be one."""
    folder = root / name
    refuse_link(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def refuse_link(folder: Path) -> None:
    """Raises ConfigError for a link: what is written into it would land wherever it points."""
    if folder.is_symlink():
        raise ConfigError(f"{folder} is a symbolic link, through which nothing is written; remove it")


def sha256_of(path: Path | str) -> str:
    """Hex digits of the hash of a file. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Waits until the content of a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
