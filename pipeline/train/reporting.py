"""Where the figures of a run go: metrics.jsonl, TensorBoard, and a terminal. Rank 0 only; the others get a
reporter that is silent."""

import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from pipeline.extras import command, is_missing
from pipeline.files import folder_within, write_bytes

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

MOST_GROUPS = 2
"""Most groups of names in one line, without learning rates; more are hard to read."""


class Reporter:
    """Context manager. A progress bar where there is a terminal, one line per report otherwise."""

    def __init__(self, folder: Path, *, main: bool, step: int, total_steps: int):
        """step: where the run starts; figures of later steps, which an interrupted run left behind, are
        removed."""
        self._main = main
        self._total = total_steps
        if not main:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        _drop_after(path, step)
        self._file = open(path, "a", encoding="utf-8")
        self._board = _board(folder, step)
        self._bar = tqdm(
            total=total_steps, initial=step, disable=not sys.stderr.isatty(), unit="step", dynamic_ncols=True
        )

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._main:
            self._file.close()
            if self._board is not None:
                self._board.close()
            self._bar.close()

    def advance(self) -> None:
        """One more step is done."""
        if self._main:
            self._bar.update()

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Values by name, at a step; None is n/a. What is not finite is null in the file, as JSON has no word
        for it.

        Details (`val/TASK/METRIC/CLASS`) go to the file and the board only.
        """
        if not self._main:
            return
        known = {name: value for name, value in values.items() if value is not None}
        plain = {name: known[name] if math.isfinite(known.get(name, math.nan)) else None for name in values}
        self._file.write(json.dumps({"step": step, **plain}) + "\n")
        self._file.flush()
        if (board := self._board) is not None:
            for name, value in known.items():
                board.add_scalar(name, value, step)
        self.say(
            f"step {step}/{self._total}  "
            f"{_text({name: known.get(name) for name in values if name.count('/') <= 2})}"
        )

    def say(self, text: str) -> None:
        """A line for the user, above the bar."""
        if self._main:
            tqdm.write(text, file=sys.stderr)


def _board(folder: Path, step: int) -> "SummaryWriter | None":
    """TensorBoard's writer, which drops the figures of later steps; None where it is not installed, or
    broken."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except Exception as err:  # noqa: BLE001 - whatever an installed package raises when it is imported
        trouble, way_out = (
            ("is not installed", f"to add it: {command('plots')}")
            if is_missing(err)
            else (f"cannot be imported ({type(err).__name__}: {err})", "mend or remove it")
        )
        log.warning("tensorboard %s, so the figures are in metrics.jsonl alone; %s", trouble, way_out)
        return None
    return SummaryWriter(str(folder_within(folder, "tensorboard")), purge_step=step + 1)


class Stopwatch:
    """Wall time since the last reading, and how much of it was spent waiting for data."""

    def __init__(self) -> None:
        self._start, self._waited, self._samples = time.perf_counter(), 0.0, 0

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
        return values


def _text(values: Mapping[str, float | None]) -> str:
    """One line; with several tasks one for each group `a/b` of names `a/b/c`."""
    groups: dict[str, list[str]] = {}
    for name, value in values.items():
        group, _, last = name.rpartition("/")
        groups.setdefault(group, []).append(f"{last} n/a" if value is None else f"{last} {value:.4g}")
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
