"""Pictures without labels: the files below a folder, or the images in shards. B images, H x W pixels."""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pipeline.data.layouts.picture_files import SUFFIXES, LeftOut, read_picture
from pipeline.data.members.decode import IMAGES
from pipeline.data.shards.cache import default_cache
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.locations import is_remote, tar_names
from pipeline.data.shards.manifest import MANIFEST, Manifest
from pipeline.data.shards.reader import SampleReader
from pipeline.errors import ConfigError, SampleError

EVERY, LEAST, MOST_BYTES = 20, 64, 1 << 29
"""Every EVERY-th picture is held out, but at least LEAST where there are twice as many, and so many that
their pixels take MOST_BYTES at most."""
OPEN_SHARDS, PATIENCE = 16, 60.0


class Pictures(Protocol):
    """Pictures by their number."""

    def __len__(self) -> int: ...

    def read(self, number: int) -> bytes:
        """The bytes of a picture file. Raises SampleError where it is none."""
        ...

    def place(self, number: int) -> tuple[str, str]:
        """(shard or folder, key) of a picture, for messages."""
        ...

    @property
    def digest(self) -> str:
        """12 hex digits that change with the set."""
        ...

    @property
    def files(self) -> frozenset[str]:
        """Where the pictures lie: files or shards, by which sets that share some are known."""
        ...


@dataclass(frozen=True)
class PictureFiles:
    """Picture files below a folder, sorted by name. digest: of their names and sizes."""

    root: Path
    names: Sequence[str]
    digest: str

    def __len__(self) -> int:
        return len(self.names)

    def read(self, number: int) -> bytes:
        return read_picture(self.root / self.names[number], None)[1]

    def place(self, number: int) -> tuple[str, str]:
        return str(self.root), self.names[number]

    @property
    def files(self) -> frozenset[str]:
        root = os.path.realpath(self.root)
        return frozenset(os.path.join(root, name) for name in self.names)


class ShardPictures:
    """The images of shards, in the order of the manifest. Open files stay in a process."""

    def __init__(self, manifest: Manifest):
        self._manifest = manifest
        self._ends = manifest.shards.num_samples.cumsum()
        self._reader = SampleReader(manifest, OPEN_SHARDS, default_cache(), PATIENCE, IMAGES)

    def __reduce__(self) -> tuple[type["ShardPictures"], tuple[Manifest]]:
        return ShardPictures, (self._manifest,)

    @property
    def members(self) -> Sequence[str]:
        """Suffixes of the members of the samples."""
        return self._manifest.schema

    def __len__(self) -> int:
        return self._manifest.num_samples

    def read(self, number: int) -> bytes:
        found = self._reader.read(*self._at(number))
        for suffix in IMAGES:
            if suffix in found:
                return found[suffix]
        raise SampleError(f"it has no image ({', '.join(IMAGES)})")

    def place(self, number: int) -> tuple[str, str]:
        shard, sample = self._at(number)
        return self._manifest.shards.name(shard), self._reader.key(shard, sample)

    @property
    def digest(self) -> str:
        return f"{self._manifest.fingerprint:012x}"

    @property
    def files(self) -> frozenset[str]:
        urls = (shard.url for shard in self._manifest.shards)
        return frozenset(url if is_remote(url) else os.path.realpath(url) for url in urls)

    def _at(self, number: int) -> tuple[int, int]:
        shard = int(self._ends.searchsorted(number, side="right"))
        return shard, number - int(self._ends[shard - 1] if shard else 0)


def find_pictures(source: str) -> Pictures:
    """The pictures of a folder, its subfolders included, or of shards: a folder of them, a brace pattern, or
    a URL. Raises ConfigError and SampleError where there are none."""
    root = Path(source)
    if not root.is_dir() or (root / MANIFEST).is_file() or tar_names(source):
        manifest = load_manifest(source)
        if not set(IMAGES) & set(manifest.schema):
            raise ConfigError(
                f"{source}: its samples have the members {', '.join(manifest.schema)}, and no image "
                f"({', '.join(IMAGES)})"
            )
        return ShardPictures(manifest)
    sizes = _files_below(root)
    if not sizes:
        raise ConfigError(
            f"{source} holds no pictures ({', '.join(SUFFIXES)}), also in its folders, and no shards (.tar); "
            "give a folder of either"
        )
    names, digest = sorted(sizes), hashlib.sha256()
    for name in names:
        digest.update(os.fsencode(f"{name} {sizes[name]}\n"))
    return PictureFiles(root, names, digest.hexdigest()[:12])


def _files_below(root: Path) -> dict[str, int]:
    """Name -> bytes of each picture file below a folder. Left out, and told: links to nothing, what is no
    file, such as a pipe, whose end nobody would see, and folders that cannot be listed."""
    found: dict[str, int] = {}
    left = LeftOut()
    for folder, _, files in os.walk(root, onerror=lambda err: left.add(Path(err.filename))):
        for name in files:
            if not name.lower().endswith(SUFFIXES) or name.startswith("."):
                continue
            path = Path(folder, name)
            if path.is_file():
                found[os.path.relpath(path, root)] = path.stat().st_size
            else:
                left.add(path)
    left.tell()
    return found


def divided(count: int, size: tuple[int, int]) -> tuple[list[int], list[int]]:
    """Numbers of the pictures to learn from, and of those that are held out. size: (height, width) in pixels
    that each will have. Raises ConfigError where there are fewer than two."""
    if count < 2:
        raise ConfigError("one picture cannot be learned from and measured on; give two or more")
    every = max(2, min(EVERY, count // LEAST))
    most = max(1, MOST_BYTES // (3 * math.prod(size)))
    every = max(every, math.ceil(count / most))
    held_out = range(0, count, every)
    return [number for number in range(count) if number % every], list(held_out)
