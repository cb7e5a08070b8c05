"""Lists that lie on the disk: the items of a set, and the order in which they are written. So the memory of
a maker does not grow with its set.

The files have no name and are gone with the process. They lie in $TMPDIR where it is set, else where Python
keeps such files: /tmp, or the next folder that takes one.
"""

import errno
import json
import mmap
import os
import struct
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from typing import IO, Any, Generic, TypeVar, overload

from pipeline.errors import ConfigError

T = TypeVar("T")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NUMBER = struct.Struct("=Q")


class Picked(Sequence[T], Generic[T]):
    """The items with these numbers, in the order of the numbers; none is held. It pickles as the list of
    them, and for a process that is being started as items and numbers."""

    def __init__(self, items: Sequence[T], numbers: Sequence[int]):
        self._items, self._numbers = items, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[T]: ...
    def __getitem__(self, at: int | slice) -> T | Sequence[T]:
        if isinstance(at, slice):
            return Picked(self._items, self._numbers[at])
        return self._items[self._numbers[at]]

    def __reduce__(self) -> tuple[Callable[..., Sequence[T]], tuple[Any, ...]]:
        if get_spawning_popen() is None:
            return list, (list(self),)
        numbers = self._numbers
        return Picked, (self._items, numbers if isinstance(numbers, range) else array("Q", numbers))


class ItemFile(Sequence[T], Generic[T]):
    """A list of items on the disk, each a line of JSON.

    items: of one dataclass, whose fields are texts, whole numbers, paths, or lists of them. load: makes an
    item of the values of its fields, in which a path is a text. It pickles as the list of them, but a process
    that is being started is given the open files, and `load`. Raises ConfigError where the disk is full.
    """

    def __init__(self, items: Iterable[T], load: Callable[..., T]):
        self._load = load
        self._length = end = 0
        with _room():
            self._lines, self._ends = _owned(_new(), self), _owned(_new(), self)
            self._ends.write(_NUMBER.pack(0))
            for item in items:
                end += self._lines.write(json.dumps([*vars(item).values()], default=os.fspath).encode())
                self._ends.write(_NUMBER.pack(end))
                self._length += 1
            self._lines.flush()
            self._ends.flush()

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[T]: ...
    def __getitem__(self, at: int | slice) -> T | Sequence[T]:
        number = range(self._length)[at]
        if isinstance(number, range):
            return Picked(self, number)
        size = _NUMBER.size
        start, end = struct.unpack("=QQ", os.pread(self._ends.fileno(), 2 * size, size * number))
        return self._load(*json.loads(os.pread(self._lines.fileno(), end - start, start)))

    def __reduce__(self) -> tuple[Callable[..., Sequence[T]], tuple[Any, ...]]:
        if get_spawning_popen() is None:
            return list, (list(self),)
        files = (DupFd(file.fileno()) for file in (self._lines, self._ends))
        return ItemFile._received, (self._load, self._length, *files)

    @classmethod
    def _received(cls, load: Callable[..., T], length: int, lines: Any, ends: Any) -> "ItemFile[T]":
        """The list in a process that has been given its files."""
        made = cls.__new__(cls)
        made._load, made._length = load, length
        made._lines, made._ends = (_owned(os.fdopen(fd.detach(), "rb"), made) for fd in (lines, ends))
        return made


def numbers_on_disk(count: int) -> Any:
    """The whole numbers below `count`, in a row: a mutable sequence, which takes 8 bytes of disk for each and
    keeps its length. Raises ConfigError where the disk is full."""
    size = _NUMBER.size * max(1, count)
    with _room(), _new() as file:
        # a page for which the disk has no room would end the process when it is written to
        os.posix_fallocate(file.fileno(), 0, size)
        numbers = memoryview(mmap.mmap(file.fileno(), size)).cast("Q")[:count]
    for number in range(count):
        numbers[number] = number
    return numbers


def _owned(file: IO[bytes], owner: object) -> IO[bytes]:
    """The file, which is closed when its owner is gone."""
    weakref.finalize(owner, _close, file)
    return file


def _new() -> IO[bytes]:
    """A file without a name."""
    try:
        return tempfile.TemporaryFile(dir=os.environ.get("TMPDIR"))
    except OSError as err:
        raise _no_room(err) from err


def _no_room(err: OSError) -> ConfigError:
    folder = os.environ.get("TMPDIR") or tempfile.gettempdir()
    return ConfigError(
        f"the list of the set's samples cannot be written to {folder}: {err.strerror}; set TMPDIR to a "
        "folder with room for it"
    )


def _close(file: IO[bytes]) -> None:
    with suppress(OSError):  # what a full disk did not take
        file.close()


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except OSError as err:
        if err.errno not in _NO_ROOM:
            raise
        raise _no_room(err) from err
