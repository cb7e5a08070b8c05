"""What an indexer knows of shards while their manifest is not there yet: a file of lines beside it. So one
that was ended does not read, or download, a shard again."""

import fcntl
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

from pipeline.data.members.decode import MAX_CLASS
from pipeline.data.shards.describe import Described, described_by
from pipeline.data.shards.index import ShardIndex
from pipeline.data.shards.locks import release
from pipeline.data.shards.storage import FileState
from pipeline.errors import ConfigError

NAME = ".indexing.jsonl"
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Note:
    """What is known of a shard whose index is written."""

    tar: str
    num_bytes: int
    tag: str
    """Of its state, see `FileState`."""
    sha256: str
    index_sha256: str
    num_classes: int

    def described(self, state: FileState, index: Path) -> Described | None:
        """What it says of the shard; None where tar or index are no longer those that it tells of."""
        if not state.tag or state != (self.num_bytes, self.tag) or not index.is_file():
            return None
        stored = index.read_bytes()
        if hashlib.sha256(stored).hexdigest() != self.index_sha256:
            return None
        try:
            found = ShardIndex.from_bytes(stored, state.size)
        except ValueError:  # of another version of this program
            return None
        return described_by(self.tar, found, state.size, self.sha256, self.num_classes)


class IndexNotes:
    """Context manager: the notes in a folder, for this process alone. Raises ConfigError where another
    indexer is at work in the folder, and where their file is none."""

    def __init__(self, folder: Path):
        self._path = folder / NAME
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            self._file = os.open(self._path, flags, 0o666)
        except OSError as err:
            raise ConfigError(f"{self._path}: {err.strerror}; remove it") from err
        try:
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise ConfigError(f"{self._path} is no file; remove it")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with open(self._path, "rb") as file:
                self.known = {note.tar: note for note in map(_note, file) if note is not None}
        except BlockingIOError as err:
            os.close(self._file)
            raise ConfigError(f"another indexer is at work in {folder}; wait until it is done") from err
        except BaseException:
            os.close(self._file)
            raise
        os.lseek(self._file, 0, os.SEEK_END)
        os.write(self._file, b"\n")  # behind a line that was cut off

    def __enter__(self) -> "IndexNotes":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._path.unlink(missing_ok=True)
        release(self._file)

    def kept(self, results: Iterable[tuple[Described, Note]]) -> Iterator[Described]:
        """The results, each of which is noted when it comes."""
        for described, note in results:
            if self.known.get(note.tar) != note:
                os.write(self._file, json.dumps(astuple(note)).encode() + b"\n")
            yield described


def _note(line: bytes) -> Note | None:
    """The note of a line; None where it is none."""
    try:
        note = Note(*json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    texts = isinstance(note.tar, str) and isinstance(note.sha256, str) and isinstance(note.index_sha256, str)
    whole = type(note.num_classes) is int and 0 <= note.num_classes <= MAX_CLASS
    return note if texts and whole and _HASH.fullmatch(note.sha256) else None
