"""RUN/metrics.csv, for spreadsheets: a row for each report, a column for each name that ever came."""

import csv
import io
import math
import sys
from collections.abc import Iterable, Mapping

from pipeline.files import replacing
from pipeline.train.trackers.tracker import Picture, TrackedRun

STEP = "step"
Row = dict[str, str]


class CsvFile:
    """A new column writes the file anew, so that each row has a cell for it; else a row is appended. No row
    is held."""

    def __init__(self, run: TrackedRun):
        self._path = run.folder / "metrics.csv"
        rows = self._rows_until(run.step)
        self._columns = list(dict.fromkeys([STEP, *(name for row in rows for name in row)]))
        self._write_anew(rows)

    @staticmethod
    def check() -> None: ...

    def write(self, step: int, values: Mapping[str, float]) -> None:
        row = {STEP: str(step)} | {name: repr(v) for name, v in values.items() if math.isfinite(v)}
        if new := [name for name in values if name not in self._columns]:
            self._columns += new
            self._write_anew([*self._rows_until(sys.maxsize), row])
            return
        with open(self._path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def show(self, step: int, pictures: Mapping[str, Picture]) -> None:
        """Pictures are files already."""

    def close(self) -> None: ...

    def _rows_until(self, step: int) -> list[Row]:
        """The rows until a step; none of what is no file of ours, or a line that was cut off."""
        if not self._path.is_file() or self._path.is_symlink():
            return []
        text = self._path.read_bytes().decode(errors="replace")
        whole = io.StringIO(text[: text.rfind("\n") + 1], newline="")
        rows = [{k: v for k, v in row.items() if k and v} for row in csv.DictReader(whole)]
        return [row for row in rows if row.get(STEP, "").isdecimal() and int(row[STEP]) <= step]

    def _write_anew(self, rows: Iterable[Row]) -> None:
        with replacing(self._path) as part, open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
