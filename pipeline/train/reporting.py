"""Where the figures of a run go: metrics.jsonl, a terminal, and trackers. Rank 0 only; the others get a
reporter that is silent."""

import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from pipeline.files import write_bytes
from pipeline.train.trackers import Trackers
from pipeline.train.trackers.tracker import Picture

log = logging.getLogger(__name__)

MOST_GROUPS = 2
"""Most groups of names in one line, without learning rates; more are hard to read."""

UNITS = {"samples_per_s": "samples/s", "data_wait": "%"}
"""Of figures that every run has."""


class Reporter:
    """Context manager. A progress bar where there is a terminal, one line per report otherwise."""

    def __init__(
        self,
        folder: Path,
        *,
        main: bool,
        step: int,
        total_steps: int,
        trackers: Trackers | None = None,
        units: Mapping[str, str] | None = None,
    ):
        """step: where the run starts; figures of later steps, which an interrupted run left behind, are
        removed. trackers: who else is told; closed at the end. units: of figures by name, for the lines; `%`
        for a share in [0, 1]."""
        self._main, self._trackers, self._units = main, trackers, UNITS | dict(units or {})
        self._total = total_steps
        if not main:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        _drop_after(path, step)
        self._file = open(path, "a", encoding="utf-8")
        self._bar = tqdm(
            total=total_steps, initial=step, disable=not sys.stderr.isatty(), unit="step", dynamic_ncols=True
        )

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            self._file.close()
            self._bar.close()
            if self._trackers is not None:
                self._trackers.close()

    def advance(self) -> None:
        """One more step is done."""
        if self._main:
            self._bar.update()

    def write(
        self, step: int, values: Mapping[str, float | None], *, seconds_left: float | None = None
    ) -> None:
        """Values by name, at a step; None is n/a. What is not finite is null in the file, as JSON has no word
        for it. seconds_left: until the last step, which the line tells.

        Details (`val/TASK/METRIC/CLASS`) go to the file and to trackers only.
        """
        if not self._main:
            return
        known = {name: value for name, value in values.items() if value is not None}
        plain = {name: known[name] if math.isfinite(known.get(name, math.nan)) else None for name in values}
        self._file.write(json.dumps({"step": step, **plain}) + "\n")
        self._file.flush()
        if self._trackers is not None:
            self._trackers.write(step, known)
        left = "" if seconds_left is None else f"  {duration(seconds_left)} left"
        shown = {name: known.get(name) for name in values if name.count("/") <= 2}
        self.say(f"step {step}/{self._total}{left}  {_text(shown, self._units)}")

    def show(self, step: int, pictures: Mapping[str, Picture]) -> None:
        """Pictures by name, for trackers."""
        if self._main and self._trackers is not None:
            self._trackers.show(step, pictures)

    def say(self, text: str) -> None:
        """A line for the user, above the bar."""
        if self._main:
            tqdm.write(text, file=sys.stderr)


class Stopwatch:
    """Wall time since the last reading, and how much of it was spent waiting for data."""

    def __init__(self) -> None:
        self._start, self._waited, self._samples = time.perf_counter(), 0.0, 0
        self.elapsed = 0.0
        """Seconds that the last reading covered."""

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Adds up the time that is spent inside: a wait for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def count(self, samples: int) -> None:
        self._samples += samples

    def read(self) -> dict[str, float]:
        """samples_per_s over all ranks, and data_wait, the share of time; starts anew."""
        elapsed = time.perf_counter() - self._start
        values = {"samples_per_s": self._samples / elapsed, "data_wait": self._waited / elapsed}
        self._start, self._waited, self._samples = time.perf_counter(), 0.0, 0
        self.elapsed = elapsed
        return values


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    hours = round(minutes / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "n/a"
    return f"{100 * value:.4g} %" if unit == "%" else f"{value:.4g} {unit}".rstrip()


def _text(values: Mapping[str, float | None], units: Mapping[str, str]) -> str:
    """One line; with several tasks one for each group `a/b` of names `a/b/c`."""
    groups: dict[str, list[str]] = {}
    for name, value in values.items():
        group, _, last = name.rpartition("/")
        groups.setdefault(group, []).append(f"{last} {_figure(value, units.get(name, ''))}")
    if len(groups.keys() - {"", "lr"}) > MOST_GROUPS:
        return "  ".join(groups.pop("", [])) + "".join(
            f"\n  {group:<22}  " + "  ".join(texts) for group, texts in groups.items()
        )
    return "  ".join(
        f"{group}/{text}" if group else text for group, texts in groups.items() for text in texts
    )


def _drop_after(path: Path, step: int) -> None:
    """Keeps the lines until `step`. Written aside, so that none is lost however this ends; a line that is
    none of ours goes to a file of its own, where a line is joined to those of before."""
    kept, strange = [], []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        found = _step_of(line)
        if found is None:
            strange.append(line)
        elif found <= step:
            kept.append(line)
    _write_lines(path, kept)
    if strange:
        place = path.with_name("metrics.damaged.txt")
        _write_lines(place, [*(place.read_bytes().splitlines() if place.is_file() else ()), *strange])
        log.warning("%s: %d lines are not figures of a step; they are kept in %s", path, len(strange), place)


def _write_lines(path: Path, lines: Sequence[bytes]) -> None:
    write_bytes(path, b"".join(line + b"\n" for line in lines))


def _step_of(line: bytes) -> int | None:
    """None for what is no line of ours, for instance one that a killed process left unfinished."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = values.get("step") if isinstance(values, dict) else None
    return step if type(step) is int and step >= 0 else None
