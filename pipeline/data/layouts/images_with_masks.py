"""Images with masks. The reader of a layout finds them and knows what their labels mean; this file does the
rest."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.layouts.item_file import ItemFile
from pipeline.data.layouts.picture_files import encoded, member_of, read_picture, shrunk
from pipeline.data.members.decode import decode_mask
from pipeline.data.members.masks import label_counts, size_mismatch
from pipeline.errors import ConfigError, SampleError, first_few


@dataclass(frozen=True)
class Pair:
    """An image and its mask."""

    key: str
    image: Path
    mask: Path
    facts = None

    @property
    def files(self) -> tuple[str, ...]:
        return str(self.image), str(self.mask)

    @property
    def suffixes(self) -> tuple[str, ...]:
        return member_of(self.image), "seg.png"


@dataclass(frozen=True)
class Layout:
    """The images and masks of a set, and what their labels mean."""

    classes: tuple[str, ...]
    labels: Mapping[int, int]
    """Maps a label of the stored masks to a class, or to 255 (ignored). Other labels are refused."""
    splits: Mapping[str, Sequence[Pair]]
    """The pairs of each split, sorted by key."""


def samples(
    pairs: Sequence[Pair], labels: Mapping[int, int], size: int | None = None
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members of each pair. Raises SampleError with the path of a file that no sample can have."""
    table = table_of(labels)
    for pair in pairs:
        suffix, image, shape = read_picture(pair.image, size)
        try:
            mask = canonical(pair.mask.read_bytes(), shape, table, size)
        except SampleError as err:
            raise SampleError(f"{pair.mask}: {err}; replace it, or remove it with its image") from err
        yield pair.key, {suffix: image, "seg.png": mask}


def table_of(labels: Mapping[int, int]) -> NDArray[np.int16]:
    """The labels of a layout as `canonical` takes them."""
    table = np.full(256, -1, dtype=np.int16)
    table[list(labels)] = list(labels.values())
    return table


def canonical(data: bytes, shape: tuple[int, int], table: NDArray[np.int16], size: int | None) -> bytes:
    """The file of a mask with our labels, which is the stored file where that changes nothing. table: int16
    [256], -1 for labels that the layout does not have."""
    mask = decode_mask(data).numpy()
    if mask.shape != shape:
        raise SampleError(size_mismatch(shape, mask.shape))
    counts = label_counts(mask)
    if strange := [
        f"{label} ({counts[label]} pixels)" for label in np.flatnonzero(counts) if table[label] < 0
    ]:
        raise SampleError(f"mask has label {', '.join(strange[:5])}, which this layout does not have")
    labels = table[mask].astype(np.uint8)
    picture = Image.fromarray(labels)
    small = picture if size is None else shrunk(picture, size, Image.Resampling.NEAREST)
    return data if small is picture and np.array_equal(labels, mask) else encoded(small, "PNG")


def paired(images: Mapping[str, Path], masks: Mapping[str, Path]) -> Sequence[Pair]:
    """The pairs of one key each, sorted by key, on the disk. Raises SampleError that names the images without
    a mask and the masks without an image."""
    alone = [f"image {images[key]} has no mask" for key in sorted(images.keys() - masks.keys())]
    alone += [f"mask {masks[key]} has no image" for key in sorted(masks.keys() - images.keys())]
    if alone:
        raise SampleError(f"{first_few(alone)}; add what is missing, or remove the file")
    pairs = (Pair(key, images[key], masks[key]) for key in sorted(images))
    return ItemFile(pairs, _pair)


def _pair(key: str, image: str, mask: str) -> Pair:
    return Pair(key, Path(image), Path(mask))


def root_with(source: Path, needed: Sequence[str], *inner: str) -> Path:
    """`source`, or the folder inside of it that holds the needed folders. inner: names of such folders.
    Raises ConfigError where none does."""
    for root in (source, *(source / name for name in inner)):
        if all((root / name).is_dir() for name in needed):
            return root
    raise ConfigError(f"{source} does not hold the folders {' and '.join(needed)}; give the folder that does")


def non_empty(source: Path, splits: Mapping[str, Sequence[Pair]], tree: str) -> dict[str, Sequence[Pair]]:
    """The splits that have samples. Raises ConfigError where none has; tree: what was looked for."""
    found = {split: pairs for split, pairs in splits.items() if pairs}
    if not found:
        raise ConfigError(f"{source} holds no images and masks; give SRC with {tree}")
    return found
