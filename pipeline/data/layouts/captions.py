"""A table of images and captions: .csv with the columns image and caption, or .jsonl with an object on each
line, which may have a list `captions`.

Images are named by their paths below the folder of the table. `split` (train, val or test) is optional; rows
without it are for training.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.data.layouts.images_with_captions import Captioned, Row, collected
from pipeline.data.layouts.tables import CSV, check_table, csv_rows, json_rows
from pipeline.errors import SampleError


def read(table: Path) -> dict[str, Sequence[Captioned]]:
    check_table(table, "images and captions")
    splits = collected(table.parent, _rows(table))
    if not splits:
        raise SampleError(f"{table} has no rows")
    return splits


def _rows(table: Path) -> Iterator[Row]:
    found = csv_rows(table, "image", "caption") if table.suffix == CSV else json_rows(table)
    return (_row(where, entry) for where, entry in found)


def _row(where: str, entry: dict[str, Any]) -> Row:
    """The row of an entry. That an image has no caption is found later, because another row may have one."""
    captions = entry.get("captions", [])
    texts: list[Any] = [
        entry.get("image"),
        entry.get("split", "train"),
        *(captions if isinstance(captions, list) else [None]),
    ]
    texts += [entry["caption"]] if "caption" in entry else []
    if not all(isinstance(text, str) for text in texts):
        raise SampleError(f'{where}: give "image" and "caption" (or "captions", a list) as texts')
    image, split, *captions = texts
    return Row(where, image, captions, split)
