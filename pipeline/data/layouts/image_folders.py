"""An ImageFolder tree: SRC/{train,val,test}/CLASS/*.JPEG, or SRC/CLASS/*.JPEG.

With ImageNet's LOC_synset_mapping.txt beside the tree, a class is called "n01440764 tench, Tinca tinca"; else
as its folder is.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pipeline.data.layouts import OTHER_TREES
from pipeline.data.layouts.item_file import ItemFile
from pipeline.data.layouts.picture_files import (
    SUFFIXES,
    LeftOut,
    folders_of,
    member_of,
    pictures_in,
    plain_key,
    read_picture,
    tell_left_out,
)
from pipeline.data.layouts.splits import split_word
from pipeline.errors import ConfigError

log = logging.getLogger(__name__)
SYNSETS = "LOC_synset_mapping.txt"
MAX_LISTED = 50
"""Classes of which each has a line in the counts."""


@dataclass(frozen=True)
class Picture:
    """A file in a class folder. endings: of such files. plural: what messages call them."""

    endings: ClassVar[tuple[str, ...]] = SUFFIXES
    plural: ClassVar[str] = "pictures"
    path: str
    key: str
    label: int

    @property
    def files(self) -> tuple[str, ...]:
        return (self.path,)

    @property
    def facts(self) -> int:
        return self.label

    @property
    def suffixes(self) -> tuple[str, ...]:
        return member_of(self.path), "cls"


def read(source: Path, item: type[Picture] = Picture) -> tuple[Mapping[str, Sequence[Picture]], list[str]]:
    """(split -> its pictures, class names). The name of the split is empty where the tree has none.
    item: what lies in the class folders.

    Logs how many pictures each split and class has, and what is left out. Raises ConfigError for a tree of
    another layout, and for class folders without pictures.
    """
    trees = _split_folders(source)
    folders = _in_order({path.name for tree in trees.values() for path in folders_of(tree)})
    if not folders:
        what = (
            "has no class folders" if source.is_dir() else f"is not a folder (here it is {source.absolute()})"
        )
        raise ConfigError(
            f"{source} {what}; give SRC with "
            f"SRC/train/CLASS/*{item.endings[0]}, or SRC/CLASS/*{item.endings[0]}"
        )
    counts: dict[str, Counter[int]] = {name or "train": Counter() for name in trees}
    splits = {name: _stored(tree, folders, counts[name or "train"], item) for name, tree in trees.items()}
    _tell_counts(source, counts, folders, item.plural)
    return splits, _names(source, folders)


def samples(pictures: Sequence[Picture], size: int | None = None) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members of each picture. Raises SampleError with the path of a file whose header is not an
    image's."""
    for picture in pictures:
        suffix, data, _ = read_picture(picture.path, size)
        yield picture.key, {suffix: data, "cls": str(picture.label).encode()}


def _in_order(folders: set[str]) -> list[str]:
    """The class folders by name; by number where they are 0, 1, ... and so their own labels, as those of
    ImageNet-V2."""
    numbers = list(map(str, range(len(folders))))
    return numbers if folders == set(numbers) else sorted(folders)


def _split_folders(source: Path) -> dict[str, Path]:
    """Maps a split to its folder of class folders. Where SRC has no folders of splits, an empty name is
    mapped to SRC itself."""
    inside = folders_of(source)
    _refuse_other_trees(source, {path.name for path in inside})
    named = [path for path in inside if split_word(path.name)]
    if not any(folders_of(path) for path in named):  # a class can be called `train`
        return {"": source}
    found: dict[str, Path] = {}
    for path in named:
        name = split_word(path.name)
        if name in found:
            raise ConfigError(
                f"{found[name]} and {path} are both the split '{name}'; put their classes into one of them"
            )
        if folders_of(path) or name != "test":  # a test set without labels is usual
            found[name] = path
    tell_left_out(
        path
        for path in source.iterdir()
        if path not in found.values() and path.name != SYNSETS and path.name[0] != "."
    )
    return {name: found[name] for name in ("train", "val", "test") if name in found}


def _refuse_other_trees(source: Path, inside: set[str]) -> None:
    for maker, needed in OTHER_TREES.items():
        if set(needed) <= inside:
            raise ConfigError(
                f"{source} holds {' and '.join(needed)}, which are no classes; give it to `dtem shards "
                f"make {maker}`"
            )
    if years := sorted(name for name in inside if re.fullmatch(r"(train|val|test)(19|20)\d\d", name)):
        raise ConfigError(
            f"{source} holds {', '.join(years)}, which are splits and no classes. For COCO's captions "
            "see `dtem shards make "
            "coco_captions --help`; else call the folders of the splits train, val and test, with a "
            "folder for each class inside"
        )


def _stored(root: Path, folders: list[str], counts: Counter[int], item: type[Picture]) -> ItemFile[Picture]:
    """The pictures in the class folders of `root`, sorted by name, on the disk. counts: is given how many
    pictures each label has."""
    pictures = ItemFile(_pictures(root, folders, counts, item), item)
    if not pictures:
        listed = ", ".join(item.endings)
        raise ConfigError(f"{root} holds no {item.plural} ({listed}) in its class folders")
    tell_left_out(
        path for path in root.iterdir() if path.is_file() and path.name != SYNSETS and path.name[0] != "."
    )
    return pictures


def _pictures(root: Path, folders: list[str], counts: Counter[int], item: type[Picture]) -> Iterator[Picture]:
    """See `_stored`. Memory holds the names of one class folder at a time. Keys are CLASS/STEM, or
    CLASS/FOLDER/STEM where a class has folders of its own."""
    label = {name: number for number, name in enumerate(folders)}
    left = LeftOut()
    alike: dict[str, list[Path]] = {}
    for folder in folders_of(root):
        # the keys of `a.b` and `a_b` begin alike, so one is read again for the other
        before = alike.setdefault(plain_key(folder.name), [])
        taken: dict[str, Path] = {}
        for other in before:
            taken |= dict(_inside(other, LeftOut(), taken, item.endings))
        before.append(folder)
        for key, path in _inside(folder, left, taken, item.endings):
            counts[label[folder.name]] += 1
            yield item(str(path), key, label[folder.name])
    left.tell()


def _inside(
    folder: Path, left: LeftOut, taken: Mapping[str, Path], endings: Sequence[str]
) -> Iterator[tuple[str, Path]]:
    """Key and path of the pictures in a class folder and in the folders inside of it, by name."""
    found = dict(taken)
    waiting: list[tuple[Path, str, tuple[str, ...]]] = [
        (folder, f"{plain_key(folder.name)}/", (os.path.realpath(folder),))
    ]
    while waiting:
        here, prefix, way = waiting.pop()
        inner: list[str] = []
        for key, name in pictures_in(here, left, suffixes=endings, prefix=prefix, taken=found, inner=inner):
            yield key, here / name
            if len(way) > 1:
                found[key] = here / name
        for name in reversed(inner):
            real = os.path.realpath(here / name)
            if real in way:  # a link back
                left.add(here / name)
            else:
                waiting.append((here / name, f"{prefix}{plain_key(name)}/", (*way, real)))


def _tell_counts(
    source: Path, counts: Mapping[str, Counter[int]], folders: Sequence[str], plural: str
) -> None:
    """Logs how many pictures each split and class has. Raises ConfigError for class folders without any."""
    if empty := [
        name for label, name in enumerate(folders) if not any(found[label] for found in counts.values())
    ]:
        raise ConfigError(
            f"{source}: {len(empty)} class folders hold no {plural}, the first is '{empty[0]}', and "
            "each would be a class; take them out of the tree"
        )
    for name, found in counts.items():
        told = found.total(), plural, len(found), min(found.values()), max(found.values())
        log.info("%s: %d %s of %d classes, %d to %d of each", name, *told)
    if len(folders) <= MAX_LISTED:
        for label, name in enumerate(folders):
            log.info(
                "class %d, %s: %s",
                label,
                name,
                ", ".join(f"{found[label]} {split}" for split, found in counts.items()),
            )
    untaught = [
        name for label, name in enumerate(folders) if "train" in counts and not counts["train"][label]
    ]
    if untaught:
        log.warning(
            "%d classes have no %s to train on, the first is '%s'; they count as classes",
            len(untaught),
            plural,
            untaught[0],
        )


def _names(source: Path, folders: list[str]) -> list[str]:
    """Names of the classes: those of the folders, and behind them the human ones of ImageNet's list."""
    path = next(
        (folder / SYNSETS for folder in (source, source.parent) if (folder / SYNSETS).is_file()), None
    )
    lines = path.read_text(encoding="utf-8").splitlines() if path else []
    human = dict(line.split(" ", 1) for line in lines if " " in line)
    return [f"{name} {human[name]}" if name in human else name for name in folders]
