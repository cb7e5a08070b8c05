"""Pictures with captions. The reader of a layout finds them; this file does the rest."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.layouts.item_file import ItemFile
from pipeline.data.layouts.picture_files import member_of, read_picture
from pipeline.data.layouts.tables import SPLITS, place_of
from pipeline.data.members.decode import decode_captions
from pipeline.errors import SampleError, first_few

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """Some captions of an image."""

    where: str
    """The place of the row, for messages."""
    image: str
    """Its path below the root of the set."""
    captions: Sequence[str]
    split: str = "train"


@dataclass(frozen=True)
class Captioned:
    """An image with all of its captions."""

    key: str
    image: Path
    split: str
    captions: list[str] = field(default_factory=list)

    @property
    def files(self) -> tuple[str, ...]:
        return (str(self.image),)

    @property
    def facts(self) -> list[str]:
        return self.captions

    @property
    def suffixes(self) -> tuple[str, ...]:
        return member_of(self.image), "json"


def collected(root: Path, rows: Iterable[Row]) -> dict[str, Sequence[Captioned]]:
    """Maps a split to its images, sorted by key, on the disk, each with the captions of all of its rows.
    Raises SampleError that names the rows and images that cannot be used."""
    found: dict[str, Captioned] = {}
    blank = 0
    for row in rows:
        image = _image(root, row)
        known = found.setdefault(image.key, image)
        if (known.image, known.split) != (image.image, image.split):
            raise SampleError(
                f"{row.where}: {image.image} ({image.split}) was {known.image} ({known.split}) in a row "
                "before; keep one of them"
            )
        texts = [text for text in (" ".join(caption.split()) for caption in row.captions) if text]
        known.captions.extend(texts)
        blank += len(row.captions) - len(texts)
    problems = [f"image {image.image} has no caption" for image in found.values() if not image.captions]
    problems += [f"image {image.image} is missing" for image in found.values() if not image.image.is_file()]
    if problems:
        raise SampleError(f"{first_few(problems)}; add what is missing, or leave the image out")
    if blank:
        log.warning("%d captions are blank, and left out", blank)
    if counts := Counter(len(image.captions) for image in found.values()):
        listed = ", ".join(f"{images} images have {number}" for number, images in sorted(counts.items()))
        log.info("captions, all of which are kept: %s", listed)
    splits = {
        split: ItemFile((found[key] for key in sorted(found) if found[key].split == split), _captioned)
        for split in SPLITS
    }
    return {split: images for split, images in splits.items() if images}


def _captioned(key: str, image: str, split: str, captions: list[str]) -> Captioned:
    return Captioned(key, Path(image), split, captions)


def _image(root: Path, row: Row) -> Captioned:
    """The image of a row, without captions. Its key is its path without the suffix."""
    return Captioned(*place_of(root, row.where, row.image, row.split), row.split)


def samples(images: Sequence[Captioned], size: int | None = None) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key and members of each image. Raises SampleError with the path of one that no reader would take."""
    for image in images:
        suffix, data, _ = read_picture(image.image, size)
        captions = json.dumps({"captions": image.captions}).encode()
        try:
            decode_captions(captions)
        except SampleError as err:
            raise SampleError(f"{image.image}: {err}; replace or remove the file") from err
        yield image.key, {suffix: data, "json": captions}
