"""Checkpoints for exact continuation, saved and loaded by all ranks together."""

import logging
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from pipeline.config.load import digest, to_plain
from pipeline.config.schema import RunConfig
from pipeline.engine.protocol import Engine
from pipeline.errors import CheckpointError, PipelineError
from pipeline.ranks import Ranks
from pipeline.rng import rng_state
from pipeline.run_folder import checkpoints_of, complete_folders, folder_name, point, pointed
from pipeline.train import storage
from pipeline.train.collective import anywhere, from_rank0
from pipeline.train.storage import Checkpoint

log = logging.getLogger(__name__)

PACKAGES = ("torch", "numpy", "timm", "deepspeed", "safetensors")
"""Packages whose versions are in a checkpoint."""


def save(
    engine: Engine,
    root: Path,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    facts: Mapping[str, Any],
    *,
    since: int,
    keep: int,
    best: bool = False,
) -> Path:
    """Writes the engine's state, `tensors` and `facts` on rank 0, and removes old checkpoints. Returns the
    checkpoint's folder. A collective.

    since: the step that the run last saved, or continued from. Checkpoints of later steps are set aside, with
    a warning. Whatever goes wrong on rank 0 (a full disk, a weight that is not finite) raises CheckpointError
    on all ranks; older checkpoints stay.
    """
    content = (
        engine.state_tensors()
        | {"rng.states": engine.gather(rng_state().to(engine.device)).cpu()}
        | dict(tensors)
    )
    trouble = ""
    if engine.rank == 0:
        try:
            _refuse_nonfinite(content)
            folder = storage.write_checkpoint(root, step, content, facts, since=since)
            if best:
                point(root, "best", folder)
            storage.prune(root, keep, folder)
        # any error, as the other ranks wait to hear of it
        except Exception as err:
            reason = str(err) if isinstance(err, OSError | SafetensorError | PipelineError) else repr(err)
            trouble = f"checkpoint of step {step} was not saved in {root}: {reason}"
    if trouble := from_rank0(engine, trouble):
        raise CheckpointError(trouble)
    return root / folder_name(step)


def load_latest(ranks: Ranks, root: Path) -> Checkpoint | None:
    """The checkpoint under `root` that `latest` names, else the newest that is whole; None where there is no
    checkpoint. A collective; ranks share the disk.

    Damaged checkpoints are passed over, with a warning. Raises CheckpointError where all are damaged:
    starting anew would hide the loss.
    """
    loaded, damaged, trouble = None, False, ""
    if ranks.rank == 0:
        try:
            loaded, damaged = _newest_whole(root)
        # the other ranks wait to hear of it
        except OSError as err:
            trouble = f"the checkpoints in {root} cannot be listed: {err}"
    if trouble := from_rank0(ranks, trouble):
        raise CheckpointError(trouble)
    if chosen := from_rank0(ranks, loaded.folder.name if loaded else ""):
        return loaded or storage.read_checkpoint(root / chosen)
    if anywhere(ranks, damaged):
        raise CheckpointError(
            f"no checkpoint in {root} is whole; resume from another one, or start anew in another "
            "output folder"
        )
    return None


def _newest_whole(root: Path) -> tuple[Checkpoint | None, bool]:
    """The first checkpoint that can be read, and whether any could not be read."""
    damaged, latest = False, pointed(root, "latest")
    folders = complete_folders(root)
    for folder in sorted(folders, key=lambda folder: folder != latest):
        try:
            return storage.read_checkpoint(folder), damaged
        except CheckpointError as err:
            damaged = True
            log.warning("%s; trying another one", err)
    return None, damaged


def load_path(path: Path) -> Checkpoint:
    """The checkpoint at `path`, which is its folder, or the folder of a run, whose pointer is followed.
    Raises CheckpointError."""
    if not path.is_dir():
        raise CheckpointError(
            f"{path}, to be continued, is not a folder; give auto, none, the folder of a run, or one of "
            "its checkpoints/step_*"
        )
    for root in (path, checkpoints_of(path)):
        if (folder := pointed(root, "latest")) is not None:
            return storage.read_checkpoint(folder)
    return storage.read_checkpoint(path)


def run_facts(config: RunConfig, world_size: int) -> dict[str, Any]:
    """The facts of a checkpoint about the run that it belongs to."""
    return {
        "config": to_plain(config),
        "digest": digest(config),
        "commit": commit(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "world_size": world_size,
    }


def _refuse_nonfinite(tensors: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"{name} is not finite; the older checkpoints stay")


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
