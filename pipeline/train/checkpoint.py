"""Checkpoints for exact continuation: which one is loaded, by all ranks together, and what is said in one."""

import logging
import platform
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.config.load import digest, to_saved
from pipeline.config.schema import RunConfig
from pipeline.errors import CheckpointError, PipelineError
from pipeline.ranks import Ranks
from pipeline.run_folder import checkpoints_of, complete_folders, last, step_of
from pipeline.train import storage
from pipeline.train.collective import agreed, joined_json
from pipeline.train.mirror import Mirror
from pipeline.train.storage import Checkpoint

log = logging.getLogger(__name__)

PACKAGES = ("torch", "numpy", "timm", "deepspeed", "safetensors")
"""Packages whose versions are in a checkpoint."""


def load_latest(
    ranks: Ranks, root: Path, mirror: Mirror | None = None, origin: str | None = None
) -> Checkpoint | None:
    """The newest checkpoint that is whole, under `root`, or of the mirror where that has none that is newer;
    None where there is none at all. A collective; ranks share the disk.

    origin: one of its `origins`. Damaged checkpoints are passed over, with a warning. Raises CheckpointError
    where all are damaged: starting anew would hide the loss.
    """
    places = str(root) if mirror is None else f"{root}, and none in {mirror.url},"
    return _first_whole(ranks, _candidates(root, mirror, origin), places)


def load_mirror(ranks: Ranks, mirror: Mirror, root: Path) -> Checkpoint:
    """The newest checkpoint of a mirror that is whole. It is copied to a hidden folder in `root`. A
    collective. Raises CheckpointError."""
    copies = (mirror.fetch(name, root) for name in mirror.names()) if ranks.rank == 0 else iter(())
    found = _first_whole(ranks, copies, mirror.url)
    if found is None:
        raise CheckpointError(f"{mirror.url} holds no complete checkpoint of a run")
    return found


def load_path(ranks: Ranks, path: Path) -> Checkpoint:
    """The checkpoint at `path`, which is its folder, or the folder of a run, whose newest one it is. A
    collective. Raises CheckpointError."""
    return _open(ranks, Path(agreed(ranks, lambda: str(_folder_at(path)))))


def _first_whole(ranks: Ranks, candidates: Iterator[Path], places: str) -> Checkpoint | None:
    """Rank 0 alone asks for the candidates."""
    damaged = False
    while folder := agreed(ranks, lambda: str(next(candidates, ""))):
        try:
            return _open(ranks, Path(folder))
        except CheckpointError as err:
            damaged = True
            if ranks.rank == 0:
                log.warning("%s; trying another one", err)
    if damaged:
        raise CheckpointError(
            f"no checkpoint in {places} is whole; resume from another one, or start anew in another "
            "output folder"
        )
    return None


def _candidates(root: Path, mirror: Mirror | None, origin: str | None) -> Iterator[Path]:
    """Yields the checkpoints, the one to try first at the front. The mirror is asked where the newest one is
    not there, or was not taken."""
    own = [folder for folder in complete_folders(root) if origin is None or origin in _origins(folder)]
    yield from own[:1]
    copies = []
    if mirror is not None:
        try:
            copies = mirror.names(origin)
        except (OSError, PipelineError) as err:
            if not own[1:]:
                raise
            log.warning("%s cannot be asked for a newer checkpoint: %s", mirror.url, err)
    others = {folder.name: folder for folder in own[1:]}
    for name in sorted({*others, *copies}, key=lambda name: -step_of(Path(name))):
        if name in others:
            yield others[name]
        if name in copies and mirror is not None:
            yield mirror.fetch(name, root)


def _origins(folder: Path) -> list[str]:
    """The paths that the run of a checkpoint goes back to; none where it is damaged."""
    try:
        return storage.read_manifest(folder).get("origins", [])
    except CheckpointError:
        return []


def _folder_at(path: Path) -> Path:
    if not path.is_dir():
        raise CheckpointError(
            f"{path}, to be continued, is not a folder; give auto, extend, none, overwrite, the folder of a "
            "run, or one of its checkpoints/step_*"
        )
    found = (last(root) for root in (path, checkpoints_of(path)))
    return next((folder for folder in found if folder is not None), path)


def _open(ranks: Ranks, folder: Path) -> Checkpoint:
    """The checkpoint, whose files are compared with its manifest by one rank each. A collective. Raises
    CheckpointError on all ranks where it is incomplete or damaged, or a rank cannot see it."""
    found, trouble = None, ""
    try:
        facts = storage.read_manifest(folder)
        for name in storage.files_of(facts)[ranks.rank :: ranks.world_size]:
            storage.check_file(folder, facts, name)
        found = storage.open_checkpoint(folder, facts)
    except CheckpointError as err:
        shared = ranks.world_size == 1 or folder.is_dir()
        trouble = f"{err}{'' if shared else '; all processes need the same output, on a shared disk'}"
    troubles = [text for text in joined_json(ranks, [trouble]) if text]
    if troubles or found is None:
        raise CheckpointError(troubles[0])
    return found


def run_facts(config: RunConfig, world_size: int) -> dict[str, Any]:
    """The facts of a checkpoint about the run that it belongs to."""
    return {
        "config": to_saved(config),
        "digest": digest(config),
        "commit": commit(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "world_size": world_size,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # engine.type='local' needs no deepspeed
        return "not installed"


@cache
def commit() -> str | None:
    """The commit of the running source at the first call; None where it is no git checkout."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
