"""Continuing from a checkpoint: checks that it is of the same model and run."""

import fnmatch
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from pipeline.config.load import digest, from_plain, to_saved
from pipeline.config.places import same_place
from pipeline.config.schema import RunConfig
from pipeline.errors import CheckpointError, ConfigError, first_few
from pipeline.train.facts import TO_CONTINUE, check_facts
from pipeline.train.storage import Checkpoint

HARMLESS = (
    "output",
    "custom_imports",
    "folder",
    "engine.type",
    "engine.zero_stage",
    "engine.compile",
    "engine.threads",
    "engine.start_timeout",
    "engine.timeout",
    "engine.accumulation",
    "engine.deepspeed*",
    "train.log_every",
    "train.eval_every",
    "train.patience",
    "train.save_every",
    "train.save_minutes",
    "train.save_optimizer_at_end",
    "train.keep_checkpoints",
    "train.mirror",
    "train.workers",
    "train.max_nonfinite",
    "log.*",
    "backbone.weights",
    "backbone.pretrained",
    "backbone.grad_checkpointing",
    "tasks.*.accumulation",
    "tasks.*.data.train",
    "tasks.*.data.val",
    "tasks.*.data.test",
    "tasks.*.data.allow_overlap",
    "tasks.*.data.limit_val",
    "tasks.*.data.batch_size",
    "tasks.*.data.eval_batch_size",
    "tasks.*.data.eval_clips",
    "tasks.*.data.eval_crops",
    "tasks.*.data.workers",
    "tasks.*.data.prefetch",
    "tasks.*.data.start_workers",
    "tasks.*.data.lanes",
    "tasks.*.data.fetch_ahead",
    "tasks.*.data.augment.crop_pct",
    "tasks.*.data.augment.crop_mode",
    "tasks.*.data.max_bad_samples",
    "tasks.*.data.max_bad_share",
    "tasks.*.data.max_wait",
    "tasks.*.data.cache_gib",
    "tasks.*.data.cache_dir",
)
"""Fields that may differ when a run is resumed: they do not change what is learned from which samples. The
place of the shards may change, but not their content or their lanes, which the stream checks. Batch size,
accumulation and ranks may change, but not their product."""


MOST_WAYS = 4
"""Settings that a message lists."""


def check_model(
    checkpoint: Checkpoint,
    shapes: Mapping[str, tuple[int, ...]],
    state: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Raises CheckpointError that names the first parameters in which the checkpoint is of another model.

    state: prefixed name and shape of each tensor of the optimizer, which has to be there too.
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
    check_tensors(checkpoint, state or {})


def holds_weights_alone(checkpoint: Checkpoint) -> bool:
    """Whether it is that of a last step with `train.save_optimizer_at_end=False`."""
    return "optimizer.safetensors" not in checkpoint.facts["files"]


def with_empty_state(
    checkpoint: Checkpoint, state: Mapping[str, tuple[int, ...]], total_steps: int
) -> Checkpoint:
    """The checkpoint with zeros for the state of the optimizer, for a run that has no step left. Raises
    CheckpointError for one that has."""
    if checkpoint.facts["progress"]["step"] < total_steps:
        raise CheckpointError(
            f"{checkpoint.folder} holds weights alone (train.save_optimizer_at_end=False), so it cannot be "
            "trained on; go on from an older one, or start a new run with it as backbone.weights"
        )
    zeros = {name: torch.zeros(shape) for name, shape in state.items()}
    return replace(checkpoint, tensors=checkpoint.tensors | zeros)


def check_tensors(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError where one of the tensors is absent or of another shape. shapes: maps the
    prefixed name of a tensor to its shape."""
    for name, shape in shapes.items():
        if name not in checkpoint.tensors or tuple(checkpoint.tensors[name].shape) != shape:
            raise CheckpointError(
                f"{checkpoint.folder} cannot be continued: it lacks the tensor {name} of shape {shape}; "
                "where train.mode, step.type, optim.type or optim.ema_decay is another now, start a new run "
                "with backbone.weights"
            )


def check_samples(
    checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]], manifests: Mapping[str, int]
) -> None:
    """Raises CheckpointError where it does not hold what the run knows of its samples, or that of others.
    shapes: see `check_tensors`; manifests: fingerprints of the training shards, by task."""
    streams = checkpoint.facts["streams"]
    for name, own in manifests.items():
        if streams.get(name, {}).get("manifest", own) != own:
            raise CheckpointError(
                f"{checkpoint.folder} cannot be continued: it knows the losses of single samples, and "
                f"tasks.{name}.data.train has other shards now; resume with those of then, or start a new "
                "run with backbone.weights"
            )
    check_tensors(checkpoint, shapes)


def check_run(
    checkpoint: Checkpoint,
    config: RunConfig,
    global_batch: Mapping[str, int],
    world_size: int = 1,
    *,
    extend: bool = False,
) -> dict[str, str]:
    """Maps each field that differs from the run that was saved to a line about it. Raises CheckpointError
    that lists the differences that make it another run, unless they are meant.

    global_batch: samples of a step of this run, by task; world_size: its ranks. extend: they are meant.
    """
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
        else _other_settings(_of_today(facts["config"]), to_saved(config))
    )
    harmful = [
        text
        for field, text in differences
        if not any(fnmatch.fnmatch(field, pattern) for pattern in HARMLESS)
    ]
    batches = list(_batch_differences(facts["global_batch"], global_batch, config, world_size, extend))
    if not extend and (harmful := harmful + batches):
        way_out = (
            "undo the changes; or go on with them by --resume extend; or start anew, by --overwrite or in "
            "another output, where backbone.weights can take the weights"
        )
        raise CheckpointError(
            "\n  ".join([f"{checkpoint.folder} belongs to another run ({way_out}):", *harmful])
        )
    return dict(differences) | {f"samples per step, {i}": text for i, text in enumerate(batches)}


def _batch_differences(
    saved: Mapping[str, int], own: Mapping[str, int], config: RunConfig, world_size: int, extend: bool
) -> Iterator[str]:
    """Yields a line for each task whose step has another number of samples than it had, with the settings
    that keep it, unless that is meant."""
    for task in sorted(saved.keys() | own.keys()):
        if saved.get(task) == own.get(task):
            continue
        there_and_here = f"{saved.get(task, 0)} there, {own.get(task, 0)} here"
        yield (
            f"samples per step of task '{task}' (batch size x accumulation x ranks): {there_and_here}"
            f"{'' if extend else _ways(task, saved, config, world_size)}"
        )


def _ways(task: str, saved: Mapping[str, int], config: RunConfig, world_size: int) -> str:
    """What keeps a task's samples per step with this number of ranks, or the numbers of ranks that can."""
    if not saved.get(task) or task not in config.tasks:
        return ""
    if saved[task] % world_size:
        # of all tasks together, as they share the ranks
        ranks = ", ".join(map(str, _divisors_near(math.gcd(*filter(None, saved.values())), world_size)))
        return f"; {world_size} ranks cannot share them evenly: start {ranks} ranks"
    share = saved[task] // world_size
    sizes = _divisors_near(share, config.tasks[task].data.batch_size)
    pairs = " or ".join(f"{size} with {share // size}" for size in sizes)
    return (
        f"; with {world_size} ranks give tasks.{task}.data.batch_size {pairs} for its accumulation "
        f"(engine.accumulation x tasks.{task}.accumulation)"
    )


def _divisors_near(number: int, wanted: int) -> list[int]:
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    return sorted(sorted(divisors, key=lambda n: abs(n - wanted))[:MOST_WAYS])


def _of_today(saved: dict[str, Any]) -> dict[str, Any]:
    """A saved config with the defaults of fields that its version did not know. A config that cannot be read
    any more stays as it is."""
    try:
        return to_saved(from_plain(saved))
    except ConfigError:
        return saved


def _other_settings(saved: dict[str, Any], own: dict[str, Any]) -> list[tuple[str, str]]:
    """The dotted name of each field that differs, and a line about it. `folder` is none, and no path that is
    written in two ways."""
    there, here = saved.pop("folder", None), own.pop("folder", None)
    return [
        (field, f"{field}: {one!r} there, {other!r} here")
        for field, one, other in _differences(saved, own)
        if not same_place(field, one, there, other, here)
    ]


def _differences(saved: Any, own: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (dotted name, saved value, own value) of each field that differs."""
    if isinstance(saved, dict) and isinstance(own, dict):
        for key in sorted(saved.keys() | own.keys()):
            yield from _differences(saved.get(key), own.get(key), f"{path}.{key}" if path else key)
    elif saved != own:
        yield path, saved, own
