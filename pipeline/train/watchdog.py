"""The watchdog of a rank: it ends a process that does not come forward, and says where it was."""

import faulthandler
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import NoReturn

from pipeline.errors import first_few, printable
from pipeline.files import folder_within
from pipeline.processes import end_at_once
from pipeline.train.notes import SharedNotes

HUNG = 3
"""Exit code of a process that its watchdog has ended."""
FRESH = 30.0
"""Seconds for which a note of a slow rank counts."""
TOLD_EVERY = 10.0
"""Seconds between notes of a slow rank."""
READ_EVERY = 5.0
"""Seconds between looks at the notes."""
EVERY = 0.5
"""Seconds between two looks at the main thread."""
WRITES_WITHIN = 5.0
"""Seconds in which a report is written; a reader or a disk that takes longer does without it."""
HOLDS_ON = 60.0
"""Seconds beyond its limit after which a section that lets no other thread run is ended from outside of
Python, with status 1."""
FOLDER = "hangs"


@dataclass(frozen=True)
class Section:
    """What the main thread is at."""

    what: str
    """`computes step 12`."""
    limit: float | None
    """Seconds it may take; None: any time."""
    patient: bool = False
    """Whether it waits for other ranks, and so for as long as one of them says that it goes on."""
    slow: Callable[[], str] | None = None
    """Given if others shall wait for it: says what it is at."""


class Watchdog:
    """Context manager with a thread that ends this process, and all that it has started, when a section of
    its main thread takes longer than its limit.

    Before, it writes the Python stacks of all threads and the keys of the last batch, to stderr and to
    `hangs/` in the run's folder. It also tells the other ranks when this one is slow and may be.
    """

    def __init__(self, folder: Path, rank: int, world_size: int, notes: SharedNotes | None = None):
        """notes: of all ranks, may be set anew once they have met."""
        self._folder, self._rank, self._world_size = folder, rank, world_size
        self.notes = notes or SharedNotes()
        self._now = Section("starts", None), time.monotonic()
        self._task, self._keys = "", ()
        self._told = self._read_at = 0.0
        self._note, self._note_since = "", 0.0
        self._closed = Event()
        self._thread = Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()
        self.notes.close()
        _end_from_outside(None)

    def at(self, section: Section) -> None:
        """A new section begins, and with it its time."""
        self._now = section, time.monotonic()

    @contextmanager
    def during(self, section: Section) -> Iterator[None]:
        """A section, and then the one around it with its time begun anew."""
        before, _ = self._now
        self.at(section)
        try:
            yield
        finally:
            self.at(before)

    def note_batch(self, task: str, keys: Sequence[str]) -> None:
        """Remembers what was loaded last."""
        self._task, self._keys = task, keys

    def report(self, reason: str) -> None:
        """Writes where this process is, to stderr and to the run's folder, each if it takes it in time."""
        text = (
            f"rank {self._rank} of {self._world_size}: {reason}\n"
            f"last batch: {printable(self._task) or 'none'}: "
            f"{first_few([printable(repr(key)) for key in self._keys], 1000, ', ')}\n"
            f"{_stacks()}"
        )
        until = time.monotonic() + WRITES_WITHIN
        writers = [Thread(target=write, args=(text,), daemon=True) for write in (_tell, self._keep)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(max(0.0, until - time.monotonic()))

    def _keep(self, text: str) -> None:
        try:
            place = folder_within(self._folder, FOLDER) / f"rank_{self._rank:05d}.txt"
            place.write_text(text, encoding="utf-8")
        except Exception as err:  # noqa: BLE001 - whatever it is, the process is to end
            _tell(f"(not written to {self._folder / FOLDER}: {err})\n")

    def _watch(self) -> None:
        armed = float("-inf")
        while not self._closed.wait(EVERY):
            section, since = self._now
            now = time.monotonic()
            spent = now - since
            if now - armed > HOLDS_ON / 10:
                armed = now
                _end_from_outside(section.limit and section.limit + HOLDS_ON)
            if section.slow is not None and min(spent, now - self._told) > TOLD_EVERY:
                self._told = now
                self.notes.write_slow(f"rank {self._rank} {section.slow()}")
            if section.limit is None:
                continue
            # read in time: what another rank said long ago is no sign of life
            excused = section.patient and spent > section.limit / 2 and self._another_goes_on(now)
            if spent > section.limit and not excused:
                self._expire(section, spent)

    def _another_goes_on(self, now: float) -> bool:
        """Whether another rank said in the last seconds that it goes on."""
        if now - self._read_at > READ_EVERY:
            self._read_at, note = now, self.notes.slow()
            if note != self._note:
                self._note, self._note_since = note, now
        others = bool(self._note) and not self._note.partition(" ")[2].startswith(f"rank {self._rank} ")
        return others and now - self._note_since < FRESH

    def _expire(self, section: Section, spent: float) -> NoReturn:
        try:
            self.report(f"no progress for {spent:.0f} s, while it {section.what}; it is ended")
        finally:
            end_at_once(HUNG)


def _end_from_outside(seconds: float | None) -> None:
    """The interpreter's own timer, which needs no thread of Python, ends this process after so many seconds;
    None: never."""
    faulthandler.cancel_dump_traceback_later()
    try:
        if seconds is not None:
            faulthandler.dump_traceback_later(seconds, exit=True)
    except (AttributeError, RuntimeError, ValueError, io.UnsupportedOperation):
        pass  # stderr is closed, or is no file


def _stacks() -> str:
    """The Python stacks of all threads. By way of a file, as faulthandler stops all threads while it writes
    to a pipe that nobody reads."""
    try:
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            return file.read().decode(errors="replace")
    except OSError as err:
        return f"(its stacks cannot be written here: {err})\n"


def _tell(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):
        pass  # nobody reads it any more
