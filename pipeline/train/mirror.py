"""A copy of a run's checkpoints on other storage, from which the run continues where its own disk is lost.

MIRROR/checkpoints/step_00000500/   as in the output; manifest.json is written last and removed first, and
                                    has another name in what is of a branch that the run has left
MIRROR/checkpoints/latest, best     pointers, written after
MIRROR/config.json, metrics.jsonl   as they were then
MIRROR/owner.json                   the output that it is of: OUTPUT/.mirror holds the same id
"""

import json
import logging
import secrets
from pathlib import Path
from typing import Any

from pipeline.data.shards.locations import checked, join
from pipeline.data.shards.storage import download, names_in, read_bytes, remove, upload, write_bytes
from pipeline.errors import ConfigError, SampleError, StorageError, printable
from pipeline.files import sync, write_text
from pipeline.run_folder import checkpoints_of, complete_folders, is_step, run_of, step_of
from pipeline.train.storage import KINDS, hidden

log = logging.getLogger(__name__)

WRITABLE = ("file", "s3", "gs")
PATIENCE = 120.0
"""Seconds for which a storage that fails is asked again."""
MANIFEST, ASIDE, OWNER = "manifest.json", "manifest.aside.json", "owner.json"
FILES = (*sorted(f"{kind}.safetensors" for kind in KINDS), MANIFEST)
"""What is copied of a checkpoint, in this order."""


def mirror_at(location: str) -> "Mirror":
    """The mirror at a path or URL. Raises ConfigError."""
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
        self.url, self._owned = url, False
        self._root = join(url, "checkpoints")

    def check_place(self, output: Path) -> None:
        """Raises ConfigError where the mirror lies in the output itself."""
        scheme, _, path = self.url.partition("://")
        if scheme == "file" and Path(path).resolve().is_relative_to(output.resolve()):
            raise ConfigError(
                f"train.mirror: {path} lies in the output, {output}; give a place on another disk"
            )

    def check_owner(self, output: Path) -> None:
        """Raises ConfigError where the mirror is that of another output, and this one has checkpoints of its
        own."""
        try:
            other = self._other(output)
        except Exception as err:  # noqa: BLE001 - whatever a server answers
            log.warning("%s does not say whose mirror it is: %r", self.url, err)
            return
        if other and any(complete_folders(checkpoints_of(output))):
            raise ConfigError(
                f"{self.url} is the mirror of another output, {other}; give another train.mirror, or remove "
                f"{OWNER} from it if that output is given up"
            )

    def put(self, folder: Path, keep: int) -> None:
        """Copies the checkpoint in a folder of a run, and what the run says of itself. Then removes all that
        is older than the newest `keep`, this one among them, but for the best. The first time it makes the
        mirror that of the run's output."""
        self._own(run_of(folder))
        place, text = join(self._root, folder.name), (folder / MANIFEST).read_bytes()
        for name in self._steps():
            if step_of(Path(name)) > step_of(folder):
                self._set_aside(join(self._root, name))
        if _facts(self._read(join(place, MANIFEST))).get("files") != _facts(text)["files"]:
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

    def names(self, origin: str | None = None) -> list[str]:
        """Complete checkpoints, the newest first. origin: one of their `origins`."""
        found = {name: _facts(self._read(join(self._root, f"{name}/{MANIFEST}"))) for name in self._steps()}
        return [
            name
            for name, facts in found.items()
            if "files" in facts and (origin is None or origin in facts.get("origins", ()))
        ]

    def fetch(self, name: str, root: Path) -> Path:
        """Copies the checkpoint into a hidden folder in that of a run's checkpoints; its content is not
        checked."""
        place, folder = join(self._root, name), hidden(root, "fetched", name)
        for file in sorted(set(names_in(place, PATIENCE)) & set(FILES)):
            download(join(place, file), folder / file, patience=PATIENCE)
            sync(folder / file)
        sync(folder)
        log.info("fetched %s", place)
        return folder

    def _own(self, output: Path) -> None:
        """Raises StorageError where another output has taken the mirror over."""
        if other := self._other(output):
            if self._owned:
                raise StorageError(f"{self.url} was taken over by another output, {other}")
            log.warning(
                "%s was the mirror of %s, and is that of %s from now on; a run that is still there keeps no "
                "copies any more",
                *(self.url, other, output),
            )
        if other is not None:
            facts = {"id": _id(output), "output": str(output.absolute())}
            write_bytes(json.dumps(facts).encode(), join(self.url, OWNER), PATIENCE)
        self._owned = True

    def _other(self, output: Path) -> str | None:
        """The other output that the mirror is of; empty where it is of none, None where it is of this one."""
        owner = _facts(self._read(join(self.url, OWNER)))
        if owner.get("id") == _id(output):
            return None
        return printable(str(owner.get("output", "of an unknown run"))) if owner else ""

    def _set_aside(self, place: str) -> None:
        """Takes a checkpoint of a branch that the run has left out of those that can be continued. Nothing
        removes it."""
        if text := self._read(join(place, MANIFEST)):
            write_bytes(text, join(place, ASIDE), PATIENCE)
            remove(join(place, MANIFEST), PATIENCE)
            log.warning(
                "%s is of a branch that the run has left: it is kept there, with its manifest as %s; remove "
                "it when it is not needed",
                *(place, ASIDE),
            )

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


def _id(output: Path) -> str:
    """A name of the output that no other one has."""
    path = output / ".mirror"
    if not path.is_file():
        write_text(path, secrets.token_hex(8))
    return path.read_text(errors="replace")


def _facts(content: bytes) -> dict[str, Any]:
    """What a manifest or owner says; nothing where it is not whole."""
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}
