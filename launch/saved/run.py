"""Loading of a run's model from its folder: plain configuration and tensors, never code."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

import tasks  # noqa: F401 - fills the registry
from launch.saved.policy_names import UNTRAINED, read_policy, seed_options
from pipeline import run_folder
from pipeline.backbone.build import model_facts
from pipeline.backbone.compiled import compile_backbone
from pipeline.backbone.key_start import start_embeddings
from pipeline.backbone.metric import is_embedding
from pipeline.config.load import from_plain
from pipeline.config.modules import tell_not_imported
from pipeline.config.places import in_their_folder
from pipeline.config.schema import MergingConfig, RunConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.model import MultiTaskModel, build_model
from pipeline.plan.resolve import resolve
from pipeline.rng import seed_of
from pipeline.train import storage

FACTS = {"config", "digest", "step", "commit", "versions"}
"""Fields of a manifest beside its files."""


@dataclass(frozen=True)
class SavedRun:
    """A run, read from a checkpoint. tensors: state of the model. averaged: whether they are averages
    (EMA)."""

    folder: Path
    config: RunConfig
    tensors: dict[str, Tensor]
    averaged: bool
    facts: dict[str, Any]

    @property
    def root(self) -> Path:
        """Folder of the run, for results; the checkpoint's own where it is outside of a run."""
        return run_folder.run_of(self.folder)

    def classes(self, task: str) -> list[str]:
        """Class names of the labels of the task's head; empty where the head has none, or the checkpoint is
        too old to have them."""
        return self.facts.get("classes", {}).get(task, [])

    def on(self, device: torch.device) -> Self:
        """The run with its tensors on a device, where its models share them."""
        return replace(self, tensors={name: tensor.to(device) for name, tensor in self.tensors.items()})

    def __str__(self) -> str:
        return (
            f"{self.folder} (step {self.facts['step']}, "
            f"{'averaged (EMA)' if self.averaged else 'last'} weights)"
        )


def read_run(path: str | Path, checkpoint: str = "best", overrides: Sequence[str] = ()) -> SavedRun:
    """The run in a checkpoint. path: folder of a run or of a checkpoint. checkpoint: `best` (the last where
    none is marked), `last`, or the name of a folder.

    overrides: `a.b=value` changes of the configuration, for instance a new place of the data. Raises
    CheckpointError and ConfigError.
    """
    found = _read(_find(Path(path), checkpoint))
    if lacking := FACTS - found.facts.keys():
        raise CheckpointError(
            f"{found.folder} does not say its {min(lacking)}: it was not written by `dtem train`"
        )
    config = from_plain(in_their_folder(found.facts["config"]), overrides)
    tell_not_imported(config.custom_imports, str(found.folder))
    # checked again, as a run may be a stranger's that was never trained
    resolve(config, 1, model_facts(config.backbone))
    tensors = {
        name.removeprefix("model."): tensor
        for name, tensor in found.tensors.items()
        if name.startswith("model.")
    }
    average = {
        name.removeprefix("ema."): tensor for name, tensor in found.tensors.items() if name.startswith("ema.")
    }
    return SavedRun(found.folder, config, tensors | average, bool(average), found.facts)


def build(
    run: SavedRun, policy: str | None = None, *, seed: int | None = None, compiled: bool = False
) -> MultiTaskModel:
    """The model of a run in evaluation mode. Its weights are the run's own tensors, which all models of the
    run share.

    policy: None takes the run's. A policy other than the run's has its default options, and reduction 0 for
    all tasks; rotary positions merge as in the run. NAME_untrained has an embedding that is drawn, or starts
    at the keys, where the policy's does; so too a reducer. seed: of that draw (None: the run's seed), and of
    merges that are drawn (None: the policy's own). compiled: as `engine.compile` of the run says, for
    inference. Raises ConfigError where the policy needs what the run never learned.
    """
    own = run.config.merging
    policy = policy or own.policy
    name, untrained, _ = read_policy(policy)
    backbone = replace(run.config.backbone, pretrained=False, weights=None)
    config = replace(run.config, backbone=backbone)
    if name != own.policy:
        tasks = {name: replace(task, merging=None) for name, task in config.tasks.items()}
        merging = MergingConfig(policy=name, rotary=own.rotary, rotary_bias=own.rotary_bias)
        config = replace(config, merging=merging, tasks=tasks)
    if drawn := seed_options(name, seed):
        config = replace(config, merging=replace(config.merging, options={**config.merging.options, **drawn}))
    with torch.random.fork_rng(devices=[]), _no_larger_than(run):
        # the seed that training starts from
        torch.manual_seed(seed_of(run.config.seed if seed is None else seed, "weights"))
        model = build_model(config)
    _load(model, run, drawn=untrained)
    if compiled:
        compile_backbone(model.backbone, config.engine.compile, inference=True)
    return model.eval()


def drawn_run(config: RunConfig) -> SavedRun:
    """A run of a configuration before its first step, with weights as they are drawn. Raises ConfigError."""
    backbone = replace(config.backbone, pretrained=False, weights=None)
    config = replace(config, backbone=backbone)
    resolve(config, 1, model_facts(backbone))
    tensors = build_model(config).state_dict()
    return SavedRun(Path(config.output), config, tensors, averaged=False, facts={"step": 0})


@contextmanager
def _no_larger_than(run: SavedRun) -> Iterator[None]:
    """A context that raises CheckpointError while a model is built that is far larger than the run's tensors,
    before it takes time and memory: a stranger's configuration may ask for any size."""
    most = (
        2 * sum(tensor.numel() for tensor in run.tensors.values()) + (1 << 26),
        2 * len(run.tensors) + (1 << 12),
    )
    numbers = tensors = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal numbers, tensors
        numbers, tensors = numbers + (0 if parameter is None else parameter.numel()), tensors + 1
        if numbers > most[0] or tensors > most[1]:
            raise CheckpointError(
                f"{run.folder} does not fit the model of its own configuration, which is far larger"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    except (RuntimeError, OverflowError, MemoryError) as err:
        raise CheckpointError(f"{run.folder}: the model of its configuration cannot be built: {err}") from err
    finally:
        hook.remove()


def _load(model: MultiTaskModel, run: SavedRun, *, drawn: bool) -> None:
    """Loads the run's tensors into the model. drawn: without what the policy learns, which stays as it
    starts."""
    tensors = {name: tensor for name, tensor in run.tensors.items() if not (drawn and is_embedding(name))}
    try:
        missing, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError as err:
        raise CheckpointError(f"{run.folder} does not fit the model of its own configuration: {err}") from err
    lacking = [name for name in missing if is_embedding(name)]
    if lacking and not drawn and model.backbone.policy.learned:
        part = "metric embedding" if ".metric." in lacking[0] else "part that its policy trains"
        raise ConfigError(
            f"{run.folder} has no {part} ({lacking[0]}): train one with train.mode='modular', "
            f"or take {UNTRAINED}"
        )
    wrong = [name for name in (*missing, *unexpected) if not is_embedding(name)]
    if wrong:
        raise CheckpointError(
            f"{run.folder} and its own configuration differ in {len(wrong)} tensors, the first is {wrong[0]}"
        )
    if drawn:
        start_embeddings(model)


def chosen_tasks(config: RunConfig, names: Sequence[str] | None) -> list[str]:
    """The named tasks, or all for None, in the run's order. Raises ConfigError for an unknown task."""
    for name in names or ():
        if name not in config.tasks:
            raise ConfigError(f"the run has no task '{name}'; it has {', '.join(config.tasks)}")
    return [name for name in config.tasks if names is None or name in names]


def only_task(config: RunConfig, task: str | None) -> str:
    """The named task, or the run's only one. Raises ConfigError without either."""
    names = list(config.tasks)
    if task is None and len(names) == 1:
        return names[0]
    if task not in names:
        raise ConfigError(f"give --task, one of {', '.join(names)}")
    return task


def _find(path: Path, checkpoint: str) -> Path:
    if (path / "manifest.json").is_file():
        return path
    root = run_folder.checkpoints_of(path)
    folders = {folder.name: folder for folder in run_folder.complete_folders(root)}
    best, last = run_folder.best(root), run_folder.last(root)
    if best is None or last is None:
        raise CheckpointError(
            f"{path} is not the folder of a run: it has no checkpoints/step_*; give the `output` of a "
            "`dtem train`"
        )
    found = ({"best": best, "last": last} | folders).get(checkpoint)
    if found is None:
        raise CheckpointError(
            f"{path} has no checkpoint '{checkpoint}'; give best, last or one of {', '.join(folders)}"
        )
    return found


def _read(folder: Path) -> storage.Checkpoint:
    """The checkpoint without the optimizer's moments, two thirds of its bytes."""
    try:
        return storage.read_checkpoint(folder, ("model", "ema"))
    except CheckpointError as err:
        others = [other.name for other in run_folder.complete_folders(folder.parent) if other != folder]
        if not others:
            raise
        raise CheckpointError(f"{err}; another one of this run: --checkpoint {' or '.join(others)}") from err
