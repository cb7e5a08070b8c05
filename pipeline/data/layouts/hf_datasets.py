"""A data set of Hugging Face's `datasets` on the disk: a folder that `save_to_disk` wrote, or parquet files
with an image column. The one door to that package.

Nothing of a data set is run: tables are read, and no script.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.data.layouts.class_lists import CLASSES, Names, parse_names
from pipeline.data.layouts.images_with_masks import canonical, table_of
from pipeline.data.layouts.item_file import ItemFile
from pipeline.data.layouts.picture_files import picture_in
from pipeline.data.layouts.splits import split_of, split_word
from pipeline.data.members.decode import MAX_CLASS
from pipeline.data.members.masks import IGNORED
from pipeline.errors import ConfigError, SampleError
from pipeline.extras import extra

IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels", "fine_label")
CAPTION_NAMES = ("captions", "caption", "sentences", "text")
_LABELS = re.compile(r"u?int\d+|(large_)?string")
"""Types of labels that can be classes."""
MASK_NAMES = ("mask", "masks", "annotation", "segmentation", "segmentation_mask", "label", "labels")
"""Columns of a mask, where they hold images."""
SAVED = "dataset_info.json", "state.json"
"""Files in a folder that `save_to_disk` wrote."""
SAVED_SPLITS = "dataset_dict.json"


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    key: str
    source: str
    split: str
    """As the data set calls it."""
    number: int
    stamp: str
    """What names the content of the table."""
    suffixes: tuple[str, ...]
    files = ()

    @property
    def facts(self) -> tuple[str, str, int]:
        return self.stamp, self.split, self.number


@dataclass(frozen=True)
class Columns:
    """The columns of a table that samples are made of."""

    image: str
    label: str | None
    captions: str | None
    mask: str | None


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return (folder / SAVED_SPLITS).is_file() or all((folder / name).is_file() for name in SAVED)


def read(source: Path) -> tuple[dict[str, Sequence[Row]], Names]:
    """(split -> its rows, names of the classes; those of masks stand in `classes.json` in the folder). The
    name of the split is empty where there is only one table without one. Raises ConfigError where there is no
    data set with an image column."""
    _tables.cache_clear()  # it may be another by now
    _classes.cache_clear()
    _listed_names.cache_clear()
    tables = _tables(str(source.absolute()))
    splits: dict[str, Sequence[Row]] = {}
    listed = _listed_names(str(source.absolute()))
    for called, (table, stamp) in tables.items():
        columns = _columns(table, f"{source}, split '{called}'", listed)
        split = split_word(called) or called
        if split in splits:
            raise ConfigError(f"{source}: two of its splits are '{split}'; take one of them away")
        splits[split] = ItemFile(_rows(str(source.absolute()), called, table, stamp, columns), _row)
    names = _classes(str(source.absolute()))
    return splits, Names(names or listed.classes, listed.mask_classes or (listed.classes if names else ()))


def samples(rows: Sequence[Row], size: int | None = None) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members of each row. size: see `read_picture`. Raises SampleError for a row that no sample can
    be made of."""
    for row in rows:
        table, _ = _tables(row.source)[row.split]
        where = f"{row.source}, split '{row.split}', row {row.number}"
        names = _listed_names(row.source)
        columns = _columns(table, where, names)
        found = table[row.number]
        suffix, data, shape = picture_in(_bytes_of(found[columns.image], where), where, size)
        members = {suffix: data}
        if columns.label is not None:
            label = found[columns.label]
            known = _classes(row.source)
            members["cls"] = str(known.index(label) if isinstance(label, str) else label).encode()
        if columns.captions is not None:
            texts = found[columns.captions]
            texts = [texts] if isinstance(texts, str) else list(texts or ())
            members["json"] = json.dumps({"captions": texts}).encode()
        if columns.mask is not None:
            members["seg.png"] = _mask_of(found[columns.mask], where, shape, names, size)
        yield row.key, members


def _rows(source: str, called: str, table: Any, stamp: str, columns: Columns) -> Iterator[Row]:
    if not len(table):
        raise ConfigError(f"{source}: split '{called}' has no rows")
    first = picture_in(_bytes_of(table[0][columns.image], f"{source}, row 0"), f"{source}, row 0", None)[0]
    more = (("cls", columns.label), ("json", columns.captions), ("seg.png", columns.mask))
    suffixes = (first, *(suffix for suffix, column in more if column is not None))
    for number in range(len(table)):
        yield Row(f"{number:08d}", source, called, number, stamp, suffixes)


def _row(key: str, source: str, split: str, number: int, stamp: str, suffixes: list[str]) -> Row:
    return Row(key, source, split, number, stamp, tuple(suffixes))


@lru_cache(maxsize=8)
def _classes(source: str) -> tuple[str, ...]:
    """Names of the classes, in all splits: those that the labels have there; of labels that are texts these,
    by alphabet; of plain numbers the numbers from 0 on. Raises ConfigError where splits differ in this."""
    named: set[tuple[str, ...]] = set()
    plain: set[Any] = set()
    for called, (table, _) in _tables(source).items():
        label = _columns(table, f"{source}, split '{called}'", _listed_names(source)).label
        own = None if label is None else getattr(table.features[label], "names", None)
        named |= {tuple(own)} if own else set()
        plain |= set() if own or label is None else set(table.unique(label))
    # a sample without a label, or with one below 0, is said to be bad
    numbers = {label for label in plain if isinstance(label, int)}
    texts = {label for label in plain if isinstance(label, str)}
    if len(named) + bool(numbers) + bool(texts) > 1:
        raise ConfigError(f"{source}: its splits have different classes")
    if max(numbers, default=0) >= MAX_CLASS:
        raise ConfigError(f"{source}: its labels go to {max(numbers)}; give numbers below {MAX_CLASS}")
    counted = tuple(map(str, range(max(numbers, default=-1) + 1)))
    return next(iter(named), ()) or tuple(sorted(texts)) or counted


@lru_cache(maxsize=8)
def _tables(source: str) -> dict[str, tuple[Any, str]]:
    """Split -> (its table, in which images are files, what names its content)."""
    with extra("datasets"):
        import datasets
        from datasets.exceptions import DatasetsError

    datasets.disable_progress_bars()
    root = Path(source)
    try:
        if is_saved(root):
            loaded = datasets.load_from_disk(source)
            found = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
            tables = {split: (table, str(table._fingerprint)) for split, table in found.items()}
        else:
            tables = {
                split: (datasets.Dataset.from_parquet([str(path) for path in paths]), _stamp(paths))
                for split, paths in _parquet(root).items()
            }
    except (ValueError, TypeError, KeyError, OSError, DatasetsError) as err:
        raise ConfigError(f"{source} does not read as a data set: {err}; save it anew") from err
    as_file = datasets.Image(decode=False)
    files = {split: _with_files(table, datasets.Image, as_file) for split, (table, _) in tables.items()}
    return {str(split): (files[split], stamp) for split, (_, stamp) in tables.items()}


def _with_files(table: Any, kind: type, as_file: Any) -> Any:
    for name, feature in table.features.items():
        table = table.cast_column(name, as_file) if isinstance(feature, kind) else table
    return table


def _parquet(root: Path) -> dict[str, list[Path]]:
    """Split -> the parquet files of it, by name, in a folder or in its folder `data`."""
    files = sorted([*root.glob("*.parquet"), *root.glob("data/*.parquet")])
    if not files:
        raise ConfigError(
            f"{root} holds neither a data set that `save_to_disk` wrote, nor .parquet files; give the "
            "folder of either"
        )
    found: dict[str, list[Path]] = {}
    for path in files:
        found.setdefault(split_of(path.name), []).append(path)
    if "" in found and len(found) > 1:
        raise ConfigError(
            f"{found[''][0]} names no split and others do; call it train-..., val-... or test-..."
        )
    return found


def _stamp(paths: Sequence[Path]) -> str:
    return json.dumps([[path.name, os.path.getsize(path)] for path in paths])


def _columns(table: Any, where: str, names: Names) -> Columns:
    """Raises ConfigError where there is no image column, or neither labels nor captions nor masks. names: of
    the classes of masks, without which a mask beside other columns is left out."""
    kinds = {name: type(feature).__name__ for name, feature in table.features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    mask = next((name for name in MASK_NAMES if name in images and len(images) > 1), None)
    images = [name for name in images if name != mask]
    kinds.pop(mask or "", None)
    image = next((name for name in IMAGE_NAMES if name in images), images[0] if len(images) == 1 else None)
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    plain = [name for name, feature in table.features.items() if _LABELS.fullmatch(_dtype(feature))]
    label = next((name for name in LABEL_NAMES if name in plain), labels[0] if len(labels) == 1 else None)
    captions = next((name for name in CAPTION_NAMES if name in kinds), None)
    if image is None or (label is None and captions is None and mask is None):
        raise ConfigError(
            f"{where} has the columns {', '.join(table.features)}; an image column "
            f"({' or '.join(IMAGE_NAMES)}) and one of labels (such as {LABEL_NAMES[0]}), captions (such as "
            f"{CAPTION_NAMES[0]}) or masks ({MASK_NAMES[0]}, of images) are needed: rename them, and save "
            "the data set anew"
        )
    if mask and not names.classes and not names.mask_classes:
        if label is None and captions is None:
            raise ConfigError(
                f"{where}: the classes of its masks have no names; list them in {CLASSES} in the folder of "
                "the data set"
            )
        mask = None
    return Columns(image, label, captions, mask)


@lru_cache(maxsize=8)
def _listed_names(source: str) -> Names:
    """The names in `classes.json` in the folder of the data set; none where there is no such file."""
    path = Path(source, CLASSES)
    return parse_names(str(path), path.read_bytes()) if path.is_file() else Names()


def _mask_of(mask: Any, where: str, shape: tuple[int, int], names: Names, size: int | None) -> bytes:
    """The member of a mask, whose label k is class k, and 255 is ignored. Raises SampleError for others."""
    count = len(names.mask_classes or names.classes)
    table = table_of({label: label for label in (*range(count), IGNORED)})
    try:
        return canonical(_bytes_of(mask, where), shape, table, size)
    except SampleError as err:
        raise SampleError(f"{where}: {err}; replace the mask, or correct {CLASSES}") from err


def _dtype(feature: Any) -> str:
    """`int64` or `string`; empty for lists and the like."""
    return found if isinstance(found := getattr(feature, "dtype", ""), str) else ""


def _bytes_of(image: Any, where: str) -> bytes:
    """The bytes of an image's file, which lie in the table or where it says."""
    if image and image["bytes"] is not None:
        return image["bytes"]
    if image and image["path"]:
        if not (path := Path(image["path"])).is_file():
            raise SampleError(f"{where}: its image {path} is no file here; restore it")
        return path.read_bytes()
    raise SampleError(f"{where}: it has no image")
