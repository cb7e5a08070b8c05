"""Tables of pictures, .csv with the names of its columns in the first line, or .jsonl with an object on each
line. Pictures are named by their paths below the folder of the table."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.data.layouts.picture_files import SUFFIXES, plain_key
from pipeline.errors import ConfigError, SampleError

SPLITS = ("train", "val", "test")
CSV, JSON_LINES = ".csv", ".jsonl"


def check_table(table: Path, holds: str) -> None:
    """Raises ConfigError for what is no such file. holds: what is in it, in words."""
    if not table.is_file() or table.suffix not in (CSV, JSON_LINES):
        raise ConfigError(
            f"{table} is not a file that ends in {CSV} or {JSON_LINES}; give the table of {holds}"
        )


def csv_rows(table: Path, *needed: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The place of each row, for messages, and its cells that are not empty. needed: names of columns. Raises
    SampleError where one is missing, and for a file that is no such table."""
    try:
        # utf-8-sig, as spreadsheets put a byte order mark in front
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if not set(needed) <= set(reader.fieldnames or ()):
                found = ", ".join(reader.fieldnames or ()) or "nothing"
                raise SampleError(
                    f"{table}: its first line names {found}, not the columns {' and '.join(needed)}; add "
                    "such a line"
                )
            for line in reader:
                cells = {name: value for name, value in line.items() if value}
                yield f"{table}, line {reader.line_num}", cells
    except (UnicodeDecodeError, csv.Error) as err:
        raise SampleError(f"{table}: {err}; give a table in UTF-8") from err


def json_rows(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place of each line, for messages, and the object on it; an empty one where something else is there.
    Raises SampleError for a line that is no JSON."""
    try:
        with table.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    where = f"{table}, line {number}"
                    try:
                        found = json.loads(line)
                    except (ValueError, RecursionError) as err:
                        raise SampleError(f"{where} is not JSON: {err}") from err
                    yield where, found if isinstance(found, dict) else {}
    except UnicodeDecodeError as err:
        raise SampleError(f"{table}: {err}; give a table in UTF-8") from err


def place_of(root: Path, where: str, image: str, split: str) -> tuple[str, Path]:
    """The key of a picture, its path without the suffix, and its file. where: the row that names it. Raises
    SampleError for a path that is no picture's below root, and for an unknown split."""
    path = PurePosixPath(image)
    below = not path.is_absolute() and ".." not in path.parts and image.isprintable()
    if not below or path.suffix.lower() not in SUFFIXES:
        raise SampleError(
            f"{where}: image {image!r} is not the path of a picture ({', '.join(SUFFIXES)}) below {root}"
        )
    if split not in SPLITS:
        raise SampleError(f"{where}: split {split!r} is none of {', '.join(SPLITS)}")
    return plain_key(str(path.with_suffix(""))), root / path
