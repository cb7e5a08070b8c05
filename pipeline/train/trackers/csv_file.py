"""RUN/metrics.csv, for spreadsheets: a row for each report, a column for each name that ever came."""

import csv
import math
from collections.abc import Mapping

from pipeline.files import replacing
from pipeline.train.trackers.tracker import Picture, TrackedRun

STEP = "step"


class CsvFile:
    """A new column writes the file anew, so that each row has a cell for it; else a row is appended."""

    def __init__(self, run: TrackedRun):
        self._path = run.folder / "metrics.csv"
        self._columns, self._rows = [STEP], self._read(run.step)
        for row in self._rows:
            self._columns += [name for name in row if name not in self._columns]
        self._write_anew()

    @staticmethod
    def check() -> None: ...

    def write(self, step: int, values: Mapping[str, float]) -> None:
        row = {STEP: str(step)} | {name: repr(v) for name, v in values.items() if math.isfinite(v)}
        self._rows.append(row)
        if new := [name for name in values if name not in self._columns]:
            self._columns += new
            self._write_anew()
            return
        with open(self._path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def show(self, step: int, pictures: Mapping[str, Picture]) -> None:
        """Pictures are files already."""

    def close(self) -> None: ...

    def _read(self, step: int) -> list[dict[str, str]]:
        """The rows until the step at which the run goes on; none of what is no file of ours."""
        if not self._path.is_file() or self._path.is_symlink():
            return []
        with open(self._path, newline="", encoding="utf-8", errors="replace") as file:
            rows = [{k: v for k, v in row.items() if k and v} for row in csv.DictReader(file)]
        return [row for row in rows if row.get(STEP, "").isdecimal() and int(row[STEP]) <= step]

    def _write_anew(self) -> None:
        with replacing(self._path) as part, open(part, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(self._rows)
