"""Checkpoints for exact continuation: which one is loaded, by all ranks together, and what is said in one."""

import json
import logging
import platform
import subprocess
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.config.load import digest, to_saved
from pipeline.config.schema import RunConfig
from pipeline.errors import CheckpointError, PipelineError
from pipeline.ranks import Ranks
from pipeline.run_folder import checkpoints_of, complete_folders, pointed
from pipeline.train import storage
from pipeline.train.collective import from_rank0, joined_json
from pipeline.train.mirror import Mirror, mirror_at
from pipeline.train.storage import Checkpoint

log = logging.getLogger(__name__)

PACKAGES = ("torch", "numpy", "timm", "deepspeed", "safetensors")
"""Packages whose versions are in a checkpoint."""


def load_latest(ranks: Ranks, root: Path, mirror: Mirror | None = None) -> Checkpoint | None:
    """The checkpoint under `root` that `latest` names, else the newest that is whole; where there is none,
    that of the mirror; else None. A collective; ranks share the disk.

    Damaged checkpoints are passed over, with a warning. Raises CheckpointError where all are damaged:
    starting anew would hide the loss.
    """
    names = _of_rank_0(ranks, lambda: [folder.name for folder in _candidates(root, mirror)])
    for name in names:
        try:
            return _open(ranks, root / name)
        except CheckpointError as err:
            if ranks.rank == 0:
                log.warning("%s; trying another one", err)
    if names:
        raise CheckpointError(
            f"no checkpoint in {root} is whole; resume from another one, or start anew in another "
            "output folder"
        )
    return None


def load_path(ranks: Ranks, path: str, root: Path) -> Checkpoint:
    """The checkpoint at `path`, which is its folder, or the folder of a run, whose pointer is followed; or at
    the URL of a mirror, from which it is copied to `root`. A collective. Raises CheckpointError."""

    def find() -> list[str]:
        mirror = mirror_at(path) if "://" in path else None
        return [str(_folder_at(Path(path)) if mirror is None else mirror.fetch(root))]

    return _open(ranks, Path(_of_rank_0(ranks, find)[0]))


def _candidates(root: Path, mirror: Mirror | None) -> list[Path]:
    """The checkpoints, the one to try first at the front."""
    if mirror is not None and not complete_folders(root) and mirror.names():
        mirror.fetch(root)
    latest = pointed(root, "latest")
    return sorted(complete_folders(root), key=lambda folder: folder != latest)


def _folder_at(path: Path) -> Path:
    if not path.is_dir():
        raise CheckpointError(
            f"{path}, to be continued, is not a folder; give auto, none, the folder of a run, or one of "
            "its checkpoints/step_*"
        )
    found = (pointed(root, "latest") for root in (path, checkpoints_of(path)))
    return next((folder for folder in found if folder is not None), path)


def _of_rank_0(ranks: Ranks, find: Callable[[], list[str]]) -> list[str]:
    """What rank 0 finds, on every rank. What goes wrong there raises CheckpointError on all of them. A
    collective."""
    found, trouble = [], ""
    if ranks.rank == 0:
        try:
            found = find()
        # the other ranks wait to hear of it
        except OSError as err:
            trouble = f"the checkpoints cannot be listed: {err}"
        except PipelineError as err:
            trouble = str(err)
    told = json.loads(from_rank0(ranks, json.dumps([trouble, found])))
    if told[0]:
        raise CheckpointError(told[0])
    return told[1]


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
