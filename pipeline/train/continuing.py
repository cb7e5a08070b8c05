"""Continuing from a checkpoint: checks that it is of the same model and run, and the state of generators."""

import fnmatch
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch

from pipeline.config.load import digest, from_plain, to_plain
from pipeline.config.schema import RunConfig
from pipeline.errors import CheckpointError, ConfigError, first_few
from pipeline.ranks import Ranks
from pipeline.rng import seed_everything, set_rng_state
from pipeline.train.facts import TO_CONTINUE, check_facts
from pipeline.train.storage import Checkpoint

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
