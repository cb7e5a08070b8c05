"""A table of images and captions: .csv with the columns image and caption, or .jsonl with an object on each
line, which may have a list `captions`.

Images are named by their paths below the folder of the table. `split` (train, val or test) is optional; rows
without it are for training.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.data.layouts.images_with_captions import Captioned, Row, collected
from pipeline.errors import ConfigError, SampleError


def read(table: Path) -> dict[str, Sequence[Captioned]]:
    readers = {".csv": _csv_rows, ".jsonl": _json_rows}
    if not table.is_file() or table.suffix not in readers:
        raise ConfigError(
            f"{table} is not a file that ends in {' or '.join(readers)}; give the table of images and "
            "captions"
        )
    try:
        splits = collected(table.parent, readers[table.suffix](table))
    except (UnicodeDecodeError, csv.Error) as err:
        raise SampleError(f"{table}: {err}; give a table in UTF-8") from err
    if not splits:
        raise SampleError(f"{table} has no rows")
    return splits


def _csv_rows(table: Path) -> Iterator[Row]:
    # utf-8-sig, as spreadsheets put a byte order mark in front
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        if not {"image", "caption"} <= set(reader.fieldnames or ()):
            found = ", ".join(reader.fieldnames or ()) or "nothing"
            raise SampleError(
                f"{table}: its first line names {found}, not the columns image and caption; add such a line"
            )
        for line in reader:
            yield _row(
                f"{table}, line {reader.line_num}", {name: value for name, value in line.items() if value}
            )


def _json_rows(table: Path) -> Iterator[Row]:
    with table.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{table}, line {number}"
                try:
                    yield _row(where, json.loads(line))
                except (ValueError, RecursionError) as err:
                    raise SampleError(f"{where} is not JSON: {err}") from err


def _row(where: str, entry: Any) -> Row:
    """The row of an entry. That an image has no caption is found later, because another row may have one."""
    plain = entry if isinstance(entry, dict) else {}
    captions = plain.get("captions", [])
    texts: list[Any] = [
        plain.get("image"),
        plain.get("split", "train"),
        *(captions if isinstance(captions, list) else [None]),
    ]
    texts += [plain["caption"]] if "caption" in plain else []
    if not all(isinstance(text, str) for text in texts):
        raise SampleError(f'{where}: give "image" and "caption" (or "captions", a list) as texts')
    image, split, *captions = texts
    return Row(where, image, captions, split)
