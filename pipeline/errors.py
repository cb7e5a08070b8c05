"""The mistakes that are not ours: the user's, the data's, the storage's, the checkpoint's.

Each message says what is wrong, where, and the way out. The command line prints them without a traceback and
exits with `exit_code`.
"""

import errno
import unicodedata
from collections.abc import Sequence

from pipeline.redact import without_secrets

_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


def printable(text: str) -> str:
    """The text as one line. What a terminal or a page would obey (control characters, line breaks, marks of
    direction) is written as an escape. Secrets are left out (`pipeline.redact`).

    For all texts that come from data: names of classes, keys, captions.
    """
    text = without_secrets(text)
    return "".join(char if _harmless(char) else char.encode("unicode_escape").decode() for char in text)


def first_few(texts: Sequence[str], most: int = 5, separator: str = "; ") -> str:
    """The first texts, and how many more there are: `a; b and 7 more`."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return separator.join(texts[:most]) + more


def counted(number: int, noun: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _harmless(char: str) -> bool:
    joins_letters = char in "\u200c\u200d"
    return char.isprintable() or unicodedata.category(char) == "Zs" or joins_letters


class PipelineError(Exception):
    """Base of every error that a user of the pipeline can act on."""

    def __str__(self) -> str:
        return "\n".join(map(printable, super().__str__().split("\n")))


class ConfigError(PipelineError):
    """The configuration, or an argument, is wrong."""


class SampleError(PipelineError):
    """A shard, manifest or sample is wrong. A run passes over a few such samples."""


class StorageError(PipelineError):
    """A shard or its index cannot be read as the manifest says: it is gone, access is denied, its size or
    the index is another one, or its storage has failed for long.

    Never a bad sample: a run that went on without it would learn from other data than it says.
    """


class OutageError(StorageError):
    """The storage does not answer now; asking again may help."""


class ConnectError(PipelineError):
    """The processes of a run did not meet, or do not reach one another."""


class StopAsked(PipelineError):
    """A wait was broken off, as the run was asked to stop."""


class CheckpointError(PipelineError):
    """A checkpoint is missing, incomplete, or of another model or run."""


def exit_code(err: BaseException) -> int:
    """Exit code of a user's error: 4 where it may pass by itself (storage or other processes did not answer),
    so that a launcher tries again; 2 where the user has to change something first."""
    return 4 if isinstance(err, StorageError | ConnectError) else 2


def is_users(err: BaseException) -> bool:
    """Whether the user can act on the error by its message, without a traceback: a PipelineError, or a file
    or folder of the user's that cannot be used."""
    return isinstance(err, PipelineError) or (
        isinstance(err, OSError) and (err.filename is not None or err.errno in _OF_THE_DISK)
    )
