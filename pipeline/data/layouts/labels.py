"""A table of images and their classes: .csv or .jsonl, with the columns image and `label`, one class, or
`labels`, any number of them: in a .csv parted by `|`, or a JSON list.

A class is a name or a number. A `classes.json` beside the table lists the names in their order; without one
they are sorted. Images are named by their paths below the folder of the table. `split` (train, val or test)
is optional; rows without it are for training.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.data.layouts.class_lists import CLASSES, parse_names
from pipeline.data.layouts.item_file import ItemFile
from pipeline.data.layouts.picture_files import log, member_of, read_picture
from pipeline.data.layouts.tables import CSV, JSON_LINES, SPLITS, check_table, csv_rows, json_rows, place_of
from pipeline.data.members.labels import checked_labels, encode_labels, numbers_of
from pipeline.errors import ConfigError, SampleError, first_few

TABLES = tuple(f"labels{suffix}" for suffix in (CSV, JSON_LINES))
"""Names of tables that are found beside pictures."""
ONE, SEVERAL = "label", "labels"
BETWEEN = "|"


@dataclass(frozen=True)
class Labelled:
    """An image with its classes. one: whether the table gives each image one class, whose number this is."""

    key: str
    image: Path
    split: str
    one: bool
    labels: list[int | str]

    @property
    def files(self) -> tuple[str, ...]:
        return (str(self.image),)

    @property
    def facts(self) -> list[int | str]:
        return self.labels

    @property
    def suffixes(self) -> tuple[str, ...]:
        return member_of(self.image), "cls" if self.one else "json"


def table_in(folder: Path) -> Path | None:
    """The table of labels in a folder; None where there is none. Raises ConfigError where there are two."""
    found = [folder / name for name in TABLES if (folder / name).is_file()]
    if len(found) > 1:
        raise ConfigError(f"{folder} has {' and '.join(TABLES)}; name one of them: labels:{found[0]}")
    return found[0] if found else None


def read(source: Path) -> tuple[dict[str, Sequence[Labelled]], tuple[str, ...]]:
    """(split -> its images by key, names of the classes). source: the table, or its folder. Raises
    ConfigError where there is no table, SampleError for rows that cannot be used."""
    table = (table_in(source) or source / TABLES[0]) if source.is_dir() else source
    check_table(table, "images and labels")
    rows = _rows(table)
    found: dict[str, Labelled] = {}
    for where, row in rows:
        if row.key in found:
            raise SampleError(
                f"{where}: {row.image} has a row already; give each image one row, with all of its classes "
                f"in the column {SEVERAL}"
            )
        found[row.key] = row
    if not found:
        raise SampleError(f"{table} has no rows")
    if missing := [f"image {row.image} is missing" for row in found.values() if not row.image.is_file()]:
        raise SampleError(f"{first_few(missing)}; add what is missing, or leave the image out")
    names = _names(table, [row.labels for row in found.values()])
    stored = _stored(table, {str(row.image): (row.one, row.labels) for row in found.values()}, names)
    found = {key: replace(row, labels=stored[str(row.image)]) for key, row in found.items()}
    _tell(found.values(), names)
    splits = {
        split: ItemFile((found[key] for key in sorted(found) if found[key].split == split), _labelled)
        for split in SPLITS
    }
    return {split: images for split, images in splits.items() if images}, names


def samples(images: Sequence[Labelled], size: int | None = None) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members of each image. Raises SampleError with the path of one that no reader would take."""
    for image in images:
        suffix, data, _ = read_picture(image.image, size)
        yield image.key, {suffix: data} | member_of_classes(image.one, image.labels)


def members_by_key(table: Path) -> tuple[dict[str, dict[str, bytes]], tuple[str, ...]]:
    """(key of a sample -> its member of classes, names of the classes), of a table that has the column `key`
    in place of `image`. Raises the errors of `read`."""
    check_table(table, "keys and labels")
    found: dict[str, tuple[bool, list[int | str]]] = {}
    for where, entry in csv_rows(table, "key") if table.suffix == CSV else json_rows(table):
        key = entry.get("key")
        if not isinstance(key, str) or key in found:
            raise SampleError(f"{where}: give each sample one row, with its key as a text")
        found[key] = _labels(where, entry)
    if len({one for one, _ in found.values()}) != 1:
        raise SampleError(f"{table}: give all rows '{ONE}', or all '{SEVERAL}'")
    names = _names(table, [labels for _, labels in found.values()])
    stored = _stored(table, found, names)
    return {key: member_of_classes(found[key][0], own) for key, own in stored.items()}, names


def member_of_classes(one: bool, labels: Sequence[int | str]) -> dict[str, bytes]:
    """Suffix and bytes of the member that holds the classes of a sample."""
    return {"cls": str(labels[0]).encode()} if one else {"json": encode_labels(labels)}


def _labelled(key: str, image: str, split: str, one: bool, labels: list[int | str]) -> Labelled:
    return Labelled(key, Path(image), split, one, labels)


def _rows(table: Path) -> Iterator[tuple[str, Labelled]]:
    """Place and content of each row. Raises SampleError where rows have `label` and others `labels`."""
    kinds: set[bool] = set()
    for where, entry in csv_rows(table, "image") if table.suffix == CSV else json_rows(table):
        image, split = entry.get("image"), entry.get("split", "train")
        if not isinstance(image, str) or not isinstance(split, str):
            raise SampleError(f'{where}: give "image" and "split" as texts')
        one, labels = _labels(where, entry)
        kinds.add(one)
        if len(kinds) > 1:
            raise SampleError(f"{where}: this row has '{ONE if one else SEVERAL}', those before the other")
        yield where, Labelled(*place_of(table.parent, where, image, split), split, one, labels)


def _labels(where: str, entry: dict[str, Any]) -> tuple[bool, list[int | str]]:
    """(whether it is one class, the classes) of a row."""
    if (ONE in entry) == (SEVERAL in entry):
        raise SampleError(
            f"{where}: give '{ONE}', one class, or '{SEVERAL}', any number of them ([] for an image that has "
            "none)"
        )
    if ONE in entry:
        return True, list(checked_labels([_label(entry[ONE])], f"{where}: '{ONE}'"))
    given = entry[SEVERAL]
    if isinstance(given, str):
        given = _parted(where, given)
    return False, list(checked_labels(given, f"{where}: '{SEVERAL}'"))


def _parted(where: str, cell: str) -> object:
    """The classes in a cell of a .csv."""
    if not cell.lstrip().startswith("["):
        return [_label(part) for part in cell.split(BETWEEN)]
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as err:
        raise SampleError(f"{where}: '{SEVERAL}' is not a JSON list: {err}") from err


def _label(given: object) -> object:
    return given.strip() if isinstance(given, str) else given


def _names(table: Path, lists: Iterable[Sequence[int | str]]) -> tuple[str, ...]:
    """The names of the classes: those beside the table, else the sorted ones in it, else the numbers."""
    path = table.with_name(CLASSES)
    if path.is_file():
        return parse_names(str(path), path.read_bytes()).classes
    labels = {label for own in lists for label in own}
    texts = {str(label) for label in labels}
    if all(text.isascii() and text.isdecimal() for text in texts):
        return tuple(map(str, range(max(map(int, texts), default=-1) + 1)))
    if any(isinstance(label, int) for label in labels):
        raise SampleError(
            f"{table}: some of its classes are numbers and others are names; list the names in {path}"
        )
    return tuple(sorted(texts))


def _stored(
    table: Path, given: Mapping[str, tuple[bool, Sequence[int | str]]], names: Sequence[str]
) -> dict[str, list[int | str]]:
    """What samples hold in place of the labels in a table: the number of the one class, or the names of
    several."""
    places = {name: number for number, name in enumerate(names)}
    found: dict[str, list[int | str]] = {}
    for sample, (one, labels) in given.items():
        try:
            numbers = numbers_of([_number(label, places) for label in labels], places, len(names))
        except SampleError as err:
            raise SampleError(f"{table}: {sample}: {err}; correct it, or add it to {CLASSES}") from err
        found[sample] = [*numbers] if one else [names[number] for number in numbers]
    return found


def _number(label: int | str, places: dict[str, int]) -> int | str:
    """A number that a .csv has as a text becomes one, unless a class is called so."""
    text = isinstance(label, str) and label not in places and label.isascii() and label.isdecimal()
    return int(label) if text else label


def _tell(rows: Iterable[Labelled], names: Sequence[str]) -> None:
    """Logs how many images have how many classes, and the classes that no image has."""
    counts, seen = Counter(len(row.labels) for row in rows), {label for row in rows for label in row.labels}
    listed = ", ".join(f"{images} images have {number}" for number, images in sorted(counts.items()))
    log.info("classes, of %d: %s", len(names), listed)
    if unseen := [name for number, name in enumerate(names) if not {name, number} & seen]:
        log.warning("%d classes have no image: %s", len(unseen), first_few(unseen, 5, ", "))
