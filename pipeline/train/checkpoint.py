"""Checkpoints for exact continuation, saved and loaded by all ranks together."""

import fnmatch
import logging
import platform
import subprocess
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from pipeline.config.load import digest, from_plain, to_plain
from pipeline.config.schema import RunConfig
from pipeline.engine.protocol import Engine
from pipeline.errors import CheckpointError, ConfigError, PipelineError, first_few
from pipeline.ranks import Ranks
from pipeline.rng import rng_state, seed_everything, set_rng_state
from pipeline.run_folder import checkpoints_of, complete_folders, folder_name, point, pointed
from pipeline.train import storage
from pipeline.train.collective import anywhere, from_rank0
from pipeline.train.facts import TO_CONTINUE, check_facts
from pipeline.train.storage import Checkpoint

log = logging.getLogger(__name__)

HARMLESS = (
    "output",
    "engine.type",
    "engine.zero_stage",
    "engine.threads",
    "engine.accumulation",
    "engine.deepspeed*",
    "train.log_every",
    "train.eval_every",
    "train.save_every",
    "train.keep_checkpoints",
    "train.max_nonfinite",
    "backbone.weights",
    "backbone.pretrained",
    "backbone.grad_checkpointing",
    "tasks.*.accumulation",
    "tasks.*.data.train",
    "tasks.*.data.val",
    "tasks.*.data.test",
    "tasks.*.data.allow_overlap",
    "tasks.*.data.batch_size",
    "tasks.*.data.eval_batch_size",
    "tasks.*.data.workers",
    "tasks.*.data.augment.crop_pct",
    "tasks.*.data.augment.crop_mode",
    "tasks.*.data.max_bad_samples",
    "tasks.*.data.max_bad_share",
    "tasks.*.data.max_wait",
    "tasks.*.data.cache_gib",
)
"""Fields that may differ when a run is resumed: they do not change what is learned from which samples. The
place of the shards may change, but not their content, which the stream checks. Batch size, accumulation and
ranks may change, but not their product."""

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


def check_model(
    checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]], trained: Collection[str] = ()
) -> None:
    """Raises CheckpointError that names the first parameters in which the checkpoint is of another model.

    trained: names of the parameters with an optimizer, whose moments have to be there too.
    """
    saved = {
        name.removeprefix("model."): tuple(t.shape)
        for name, t in checkpoint.tensors.items()
        if name.startswith("model.")
    }
    differing = [name for name in sorted(saved.keys() | shapes.keys()) if saved.get(name) != shapes.get(name)]
    if differing:
        lines = [
            f"{name}: {saved.get(name, 'absent')} there, {shapes.get(name, 'absent')} here"
            for name in differing
        ]
        listed = first_few(lines, 3, "\n  ")
        raise CheckpointError(f"{checkpoint.folder} is of another model:\n  {listed}")
    expected = {
        f"{key}.{name}": shape
        for name in trained
        for key, shape in dict(exp_avg=shapes[name], exp_avg_sq=shapes[name], step=()).items()
    }
    check_tensors(checkpoint, expected)


def check_tensors(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError where one of the tensors is absent or of another shape. shapes: maps the
    prefixed name of a tensor to its shape."""
    for name, shape in shapes.items():
        if name not in checkpoint.tensors or tuple(checkpoint.tensors[name].shape) != shape:
            raise CheckpointError(
                f"{checkpoint.folder} cannot be continued: it lacks the tensor {name} of shape {shape}"
            )


def check_run(checkpoint: Checkpoint, config: RunConfig, global_batch: Mapping[str, int]) -> list[str]:
    """A line for each harmless difference to the run that was saved. Raises CheckpointError that lists the
    differences that make it another run. global_batch: samples of a step, by task."""
    facts = checkpoint.facts
    check_facts(checkpoint.folder, facts, TO_CONTINUE)
    if facts["progress"]["step"] != facts["step"] or not all(
        "samples" in facts["streams"].get(task, {}) for task in global_batch
    ):
        raise CheckpointError(
            f"{checkpoint.folder} is damaged or made by hand: its step, progress and streams do not fit "
            "one another"
        )
    differences = (
        []
        if facts["digest"] == digest(config)
        else list(_differences(_of_today(facts["config"]), to_plain(config)))
    )
    harmful = [
        text
        for field, text in differences
        if not any(fnmatch.fnmatch(field, pattern) for pattern in HARMLESS)
    ]
    if facts["global_batch"] != dict(global_batch):
        harmful.append(
            f"samples per step (batch size x accumulation x ranks): {facts['global_batch']} there, "
            f"{dict(global_batch)} here"
        )
    if harmful:
        way_out = "undo the changes, or start a new run with backbone.weights"
        raise CheckpointError(
            "\n  ".join([f"{checkpoint.folder} belongs to another run ({way_out}):", *harmful])
        )
    return [text for _, text in differences]


def restore_rng(checkpoint: Checkpoint, ranks: Ranks, seed: int) -> None:
    """Sets this rank's generators as they were. With another number of ranks they start from an address that
    includes the step. Raises CheckpointError."""
    states = checkpoint.tensors.get("rng.states", torch.empty(0))
    if states.ndim != 2 or states.dtype != torch.int64:
        raise CheckpointError(
            f"{checkpoint.folder} cannot be continued: it lacks the states of the generators (rng.states)"
        )
    if len(states) == ranks.world_size:
        try:
            set_rng_state(states[ranks.rank])
        except (RuntimeError, ValueError, TypeError, OverflowError) as err:
            raise CheckpointError(
                f"{checkpoint.folder} cannot be continued: its rng.states are no states of generators ({err})"
            ) from err
    else:
        seed_everything(seed, "resumed", checkpoint.facts["step"], ranks.rank)


def _of_today(saved: dict[str, Any]) -> dict[str, Any]:
    """A saved config with the defaults of fields that its version did not know. A config that cannot be read
    any more stays as it is."""
    try:
        return to_plain(from_plain(saved))
    except ConfigError:
        return saved


def _differences(saved: Any, own: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields the dotted name of each field that differs, and a line about it."""
    if isinstance(saved, dict) and isinstance(own, dict):
        for key in sorted(saved.keys() | own.keys()):
            yield from _differences(saved.get(key), own.get(key), f"{path}.{key}" if path else key)
    elif saved != own:
        yield path, f"{path}: {saved!r} there, {own!r} here"


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
