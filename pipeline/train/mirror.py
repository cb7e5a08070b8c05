"""A copy of a run's checkpoints on other storage, from which the run continues where its own disk is lost.

MIRROR/checkpoints/step_00000500/   as in the output; manifest.json is written last and removed first
MIRROR/checkpoints/latest, best     pointers, written after
MIRROR/config.json, metrics.jsonl   as they were then
"""

import json
import logging
from pathlib import Path

from pipeline.data.shards.locations import checked, join
from pipeline.data.shards.storage import download, names_in, read_bytes, remove, upload
from pipeline.errors import CheckpointError, ConfigError, SampleError
from pipeline.run_folder import is_step, run_of, step_of
from pipeline.train.storage import KINDS

log = logging.getLogger(__name__)

WRITABLE = ("file", "s3", "gs")
PATIENCE = 120.0
"""Seconds for which a storage that fails is asked again."""
MANIFEST = "manifest.json"
FILES = (*sorted(f"{kind}.safetensors" for kind in KINDS), MANIFEST)
"""What is copied of a checkpoint, in this order."""


def mirror_at(location: str | None) -> "Mirror | None":
    """The mirror at a path or URL; None for None. Raises ConfigError."""
    if location is None:
        return None
    try:
        plain = checked(location)
    except SampleError as err:
        raise ConfigError(f"train.mirror: {err}") from err
    url = plain if "://" in plain else f"file://{Path(plain).absolute()}"
    if (scheme := url.split("://")[0]) not in WRITABLE:
        raise ConfigError(f"train.mirror: {scheme} cannot be written to; give a path, or a URL of s3 or gs")
    return Mirror(url)


class Mirror:
    """A folder at a URL. Its methods raise StorageError and FileNotFoundError."""

    def __init__(self, url: str):
        self.url = url
        self._root = join(url, "checkpoints")

    def put(self, folder: Path, keep: int) -> None:
        """Copies the checkpoint in a folder of a run, and what the run says of itself. Then removes all that
        is older than the newest `keep`, this one among them, but for the best."""
        place, text = join(self._root, folder.name), (folder / MANIFEST).read_bytes()
        if _files(self._read(join(place, MANIFEST))) != _files(text):
            remove(join(place, MANIFEST), PATIENCE)
            for name in FILES[:-1]:
                if (folder / name).is_file():
                    upload(folder / name, join(place, name), PATIENCE)
        upload(folder / MANIFEST, join(place, MANIFEST), PATIENCE)
        for name in ("latest", "best"):
            if (folder.parent / name).is_file():
                upload(folder.parent / name, join(self._root, name), PATIENCE)
        for name in ("config.json", "metrics.jsonl"):
            if (run_of(folder) / name).is_file():
                upload(run_of(folder) / name, join(self.url, name), PATIENCE)
        self._prune(folder, keep)

    def names(self) -> list[str]:
        """Complete checkpoints, the one to continue first at the front."""
        steps = [name for name in self._steps() if MANIFEST in names_in(join(self._root, name), PATIENCE)]
        return sorted(steps, key=lambda name: name != self._pointed("latest"))

    def fetch(self, root: Path) -> Path:
        """Copies the checkpoint to continue into the folder of a run's checkpoints; its content is not
        checked. Raises CheckpointError where there is none, or another one of that step is in the folder."""
        if not (names := self.names()):
            raise CheckpointError(f"{self.url} holds no complete checkpoint of a run")
        place, folder = join(self._root, names[0]), root / names[0]
        if folder.exists():
            if (folder / MANIFEST).read_bytes() == self._read(join(place, MANIFEST)):
                return folder
            raise CheckpointError(f"{folder} is another checkpoint than that of {place}; give another output")
        partial = root / f".partial-{names[0]}"
        for name in sorted(set(names_in(place, PATIENCE)) & set(FILES)):
            download(join(place, name), partial / name, patience=PATIENCE)
        partial.rename(folder)
        log.info("fetched %s", place)
        return folder

    def _prune(self, saved: Path, keep: int) -> None:
        older = [name for name in self._steps() if step_of(Path(name)) < step_of(saved)]
        for name in older[keep - 1 :]:
            if name != self._pointed("best"):
                for file in reversed(FILES):
                    remove(join(self._root, f"{name}/{file}"), PATIENCE)

    def _steps(self) -> list[str]:
        """The newest first."""
        names = (name for name in names_in(self._root, PATIENCE) if is_step(Path(name)))
        return sorted(names, key=lambda name: -step_of(Path(name)))

    def _pointed(self, name: str) -> str:
        return self._read(join(self._root, name)).decode(errors="replace").strip()

    def _read(self, location: str) -> bytes:
        """The content of a file, which is empty where there is none."""
        try:
            return read_bytes(location, PATIENCE)
        except FileNotFoundError:
            return b""


def _files(manifest: bytes) -> object:
    """The hashes of a manifest's files; None where it has none."""
    try:
        return json.loads(manifest)["files"]
    except (ValueError, LookupError, TypeError):
        return None
