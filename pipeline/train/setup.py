"""Builds a run from its configuration and, where there is one, from its checkpoint."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.config.load import to_saved
from pipeline.config.schema import RunConfig
from pipeline.data.augment.mixing import BatchMixer
from pipeline.data.samples.class_names import agreed
from pipeline.data.stream import EvalLoader, TrainStream
from pipeline.engine import build_engine, launched
from pipeline.engine.exchange import fill
from pipeline.engine.optimizers import state_shapes
from pipeline.engine.protocol import Engine
from pipeline.errors import CheckpointError, ConfigError
from pipeline.files import refuse_link, write_text
from pipeline.interfaces import Progress
from pipeline.model import MultiTaskModel, build_model
from pipeline.parts import set_trainable
from pipeline.plan.facts import ModelFacts, fed_tasks
from pipeline.plan.resolve import resolve
from pipeline.rng import seed_everything
from pipeline.run_folder import checkpoints_of
from pipeline.train import branches, continuing, extending, overwriting
from pipeline.train.bilevel import build_bilevel
from pipeline.train.branches import Choice
from pipeline.train.checked import check_shares, completed, data_of, refusals
from pipeline.train.conflict import build_probe
from pipeline.train.ema import Ema
from pipeline.train.faults.injection import Injection
from pipeline.train.gate import GradientGate
from pipeline.train.groups import parameter_groups
from pipeline.train.header import model_lines, run_lines
from pipeline.train.kind_norms import build_kind_norms
from pipeline.train.lock import locked
from pipeline.train.meeting import Meeting
from pipeline.train.mirror import Mirror, mirror_at
from pipeline.train.run import Run
from pipeline.train.same_shards import check_same_run, check_same_shards
from pipeline.train.save_times import SaveTimes
from pipeline.train.saving import Saver
from pipeline.train.steps import build_procedure
from pipeline.train.waiting import DataWait

log = logging.getLogger(__name__)


def build_run(config: RunConfig, resume: str) -> Run:
    """The run of a configuration. resume: `auto` continues the last checkpoint of the run's folder, if any;
    `extend` does so with other settings too (`extending`); `none` starts anew, and refuses a folder with
    checkpoints; `overwrite` starts anew, and sets aside what is there (`overwriting`); else the path of a run
    or checkpoint, or the URL of a mirror, see `branches.choose`.

    Mistakes in the configuration are found before processes are connected, and a folder that cannot be
    written to before the first step. Raises PipelineError.
    """
    with ExitStack() as begun:
        run = _built(config, resume, begun)
        begun.pop_all()
    return run


def _built(config: RunConfig, resume: str, begun: ExitStack) -> Run:
    """begun: closes what a run that cannot begin has opened."""
    world_size, rank = launched.world_size(), launched.rank()
    resume = overwriting.once(resume)
    config, facts, mirror = _checked(config, world_size)
    procedure = build_procedure(config)
    streams, loaders = _build_data(config, rank, world_size)
    samples = {name: stream.num_samples for name, stream in streams.items()}
    resolved = resolve(config, world_size, facts, samples)
    if config.engine.threads:
        torch.set_num_threads(config.engine.threads)
    model = _build_model(config, streams, loaders)
    lock = locked(Path(config.output)) if rank == 0 else nullcontext()
    begun.enter_context(lock)
    _check_places(config, rank, mirror, resume)
    set_trainable(model, config.train.mode, [name for name, task in config.tasks.items() if task.frozen])
    groups = parameter_groups(model, config)
    kept = _kept(config, model, groups)
    about = model_lines(resolved, model, kept.trained, samples)

    def trains(step: int) -> frozenset[str]:
        return procedure.spec(step).trains

    probe = build_probe(config, groups, list(streams), trains)
    bilevel = build_bilevel(model.balancing, groups, resolved.micro_batches, trains)
    kind_norms = build_kind_norms(config, groups)
    engine = build_engine(config, model, groups)
    _check_ranks(engine, config, streams, loaders)
    run = Run(
        resolved=resolved,
        engine=engine,
        procedure=procedure,
        groups=groups,
        gate=GradientGate(groups, engine.device),
        ema=_ema(config, model),
        probe=probe,
        bilevel=bilevel,
        kind_norms=kind_norms,
        streams=streams,
        loaders=loaders,
        mixers=_build_mixers(config, model),
        open={},
        meeting=Meeting(engine),
        faults=Injection(),
        lock=lock,
        about=[*run_lines(resolved, engine), *about],
        progress=Progress(),
        saver=Saver(engine, checkpoints_of(Path(config.output)), config.train.keep_checkpoints, mirror),
        save_times=SaveTimes(config.train, resolved.epoch_steps or 1.0),
        origins=(),
        reported=0,
        data_wait=DataWait(config),
        nonfinite=torch.zeros(2, device=engine.device),
    )
    procedure.begin(streams, run.epoch_steps, engine.device)
    if resume == "overwrite":
        run.about += overwriting.set_aside(engine, Path(config.output))
    elif (choice := branches.choose(engine, run.root, resume, mirror)) is not None:
        _restore(run, choice, kept, extend=resume == "extend")
    return run


def _checked(config: RunConfig, world_size: int) -> tuple[RunConfig, ModelFacts, Mirror | None]:
    """The configuration in full, and where checkpoints are copied. Raises what is wrong with either."""
    config, facts = completed(config, world_size)
    for refusal in refusals(config, world_size):
        raise refusal
    mirror = None if config.train.mirror is None else mirror_at(config.train.mirror)
    if mirror is not None:
        mirror.check_place(Path(config.output))
    return replace(config, folder=os.getcwd()), facts, mirror


Shapes = dict[str, tuple[int, ...]]


class _Kept(NamedTuple):
    """What a checkpoint has to hold. model: shapes of its tensors; state: of the optimizer's, see
    `state_shapes`; trained: names of the parameters that learn."""

    model: Shapes
    state: Shapes
    trained: list[str]


def _kept(config: RunConfig, model: MultiTaskModel, groups: Sequence[dict[str, Any]]) -> _Kept:
    named = {id(each): (name, tuple(each.shape)) for name, each in model.named_parameters()}
    return _Kept(
        {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        state_shapes(config.optim, groups, named),
        [name for name, parameter in model.named_parameters() if parameter.requires_grad],
    )


def _build_model(
    config: RunConfig, streams: Mapping[str, TrainStream], loaders: Mapping[str, EvalLoader]
) -> MultiTaskModel:
    """The model with its first weights. Raises ConfigError where its heads do not fit the data."""
    seed_everything(config.seed, "weights")
    model = build_model(config)
    model.check_data({**loaders, **streams})
    model.check_data(loaders)
    _tell_spare_classes(model, streams)
    return model


def _ema(config: RunConfig, model: MultiTaskModel) -> Ema | None:
    decay = config.optim.ema_decay
    return Ema(model, decay, warms_up=config.optim.ema_warmup) if decay else None


def _check_ranks(
    engine: Engine, config: RunConfig, streams: Mapping[str, TrainStream], loaders: Mapping[str, EvalLoader]
) -> None:
    """That all ranks have the same config and shards. A collective."""
    fed = {f"tasks.{name}.data.train": stream.fingerprint for name, stream in streams.items()}
    held = {f"tasks.{name}.data.val": loader.fingerprint for name, loader in loaders.items()}
    check_same_run(engine, config)
    check_same_shards(engine, fed | held)


def _check_places(config: RunConfig, rank: int, mirror: Mirror | None, resume: str) -> None:
    """That the run may begin in its output and its mirror."""
    output = Path(config.output)
    if rank == 0 and mirror is not None:
        _check_mirror(mirror, output, resume)
    _check_output(output, resume)


def _check_output(folder: Path, resume: str) -> None:
    for name in ("checkpoints", "tensorboard"):
        refuse_link(folder / name)
    if resume == "none" and any(folder.glob("checkpoints/step_*")):
        raise ConfigError(
            f"{folder} holds checkpoints of a run, which --resume none does not touch; continue it with "
            "--resume auto, start anew with --overwrite, which sets them aside, or give another output"
        )


def _check_mirror(mirror: Mirror, output: Path, resume: str) -> None:
    mirror.check_owner(output)
    if resume in ("none", "overwrite") and mirror.names():
        raise ConfigError(
            f"{mirror.url} holds checkpoints of a run, which a new one does not touch; continue it with "
            "--resume auto, or give another train.mirror"
        )


def _tell_spare_classes(model: MultiTaskModel, streams: Mapping[str, TrainStream]) -> None:
    """Warns of heads with more classes than their shards. That can be meant, when a head is tuned on some
    classes; more often a config has the number of another set."""
    for name, stream in streams.items():
        given, there = model.tasks[name].num_classes, len(stream.classes)
        if 0 < there < given:
            log.warning(
                "tasks.%s.head.num_classes is %d and the shards have %d classes: %d outputs have no "
                "sample to learn from. "
                "For a head of this set give %d",
                *(name, given, there, given - there, there),
            )


def _build_data(
    config: RunConfig, rank: int, world_size: int
) -> tuple[dict[str, TrainStream], dict[str, EvalLoader]]:
    """The streams and loaders of all tasks. Raises one error for all that is wrong with their data."""
    found = data_of(config, rank, world_size)
    if troubles := list(found.refused.values()):
        raise type(troubles[0])("\n".join(dict.fromkeys(map(str, troubles)))) from troubles[0]
    check_shares(config, found.loaders, world_size)
    return found.streams, found.loaders


def _build_mixers(config: RunConfig, model: MultiTaskModel) -> dict[str, BatchMixer]:
    """The mixers of the tasks with mixup or cutmix, all of which have classes."""
    augments = {name: task.data.augment for name, task in fed_tasks(config).items()}
    return {
        name: BatchMixer(
            augment, model.tasks[name].num_classes, model.tasks[name].reads, model.backbone.patch_size
        )
        for name, augment in augments.items()
        if augment.mixes
    }


def _restore(run: Run, choice: Choice, kept: _Kept, *, extend: bool) -> None:
    resolved, ranks, found = run.resolved, run.engine.world_size, choice.found
    differences = continuing.check_run(found, run.config, resolved.global_batch, ranks, extend=extend)
    for difference in differences.values():
        log.warning("the run continues with %s", difference)
    if kept.state and continuing.holds_weights_alone(found):
        found = continuing.with_empty_state(found, kept.state, run.total_steps)
    continuing.check_model(found, kept.model, kept.state)
    if run.ema is not None:
        continuing.check_tensors(found, {f"ema.{name}": kept.model[name] for name in kept.trained})
    run.engine.load_state_tensors(found.tensors)
    if run.ema is not None:
        fill(run.engine, {f"ema.{name}": average for name, average in run.ema.averages()}, found.tensors)
    if known := {f"samples.{name}": tensor for name, tensor in run.procedure.state().items()}:
        manifests = {name: stream.fingerprint for name, stream in run.streams.items()}
        continuing.check_samples(found, {name: tuple(each.shape) for name, each in known.items()}, manifests)
        fill(run.engine, known, found.tensors)
    # older checkpoints have no classes
    for name, names in found.facts.get("classes", {}).items():
        if (
            name in run.loaders
            and run.loaders[name].classes
            != agreed(run.loaders[name].classes, names, f"tasks.{name}.data").names
        ):
            raise CheckpointError(
                f"{found.folder}: its classes of task '{name}' are in another order; resume with the "
                "shards of then"
            )
    run.progress, run.origins = Progress(**found.facts["progress"]), choice.origins
    if extend:
        changes = list(extending.extend(run, found.facts["streams"], differences))
    else:
        changes = list(extending.forget_best(run, differences))
        for name, stream in run.streams.items():
            stream.load_state_dict(found.facts["streams"][name])
    folder, run.progress.best_step = branches.make_lasting(run.engine, run.root, choice)
    if run.progress.best_step is None:
        run.progress.best = None
    run.saver.restored(run.progress, folder)
    run.reported = run.progress.step
    run.nonfinite[0] = run.progress.nonfinite
    run.about += [
        f"continues after step {run.progress.step} of {run.total_steps}, from {choice.place}",
        *changes,
    ]


def write_config(run: Run) -> None:
    """Writes the resolved configuration as plain data, which evaluation reads."""
    if run.engine.rank == 0:
        write_text(Path(run.config.output) / "config.json", json.dumps(to_saved(run.config), indent=1))
