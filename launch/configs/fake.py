"""Batches of noise in the shapes of a task's own, to try a step without data."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from launch.configs.prepared import Prepared
from pipeline.config.schema import DataConfig
from pipeline.data.samples.text import build_tokenizer
from pipeline.data.targets import (
    CaptionTargets,
    ClassificationTargets,
    ClipTargets,
    MaskTargets,
    MultiLabelTargets,
)
from pipeline.engine import build_engine
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, Task
from pipeline.rng import seed_everything
from pipeline.train.groups import parameter_groups
from pipeline.train.metrics import MetricSums, mean
from pipeline.train.mixing import tasks_of_step
from pipeline.train.rates import learning_rates
from pipeline.train.steps import build_procedure
from pipeline.train.steps.procedure import MicroBatch, StepWork


def fake_batch(prepared: Prepared, task: str, size: int) -> Batch:
    """A training batch of `size` samples: images float32 [size * views, 3, H, W], or clips, of noise, and
    random targets. Raises ConfigError for targets of which no fake is known."""
    data, head = prepared.config.tasks[task].data, prepared.model.tasks[task]
    images = torch.randn(size * data.views, *prepared.model.backbone.input_shape(data.size))
    if head.reads not in FAKES:
        raise ConfigError(f"task '{task}' reads {head.reads.__name__}, of which no fake batch is known")
    targets = FAKES[head.reads](data, head, len(images))
    keys = tuple(f"fake{number}" for number in range(len(images)))
    return Batch(task, images, targets, keys, None, data.views)


def fake_step(prepared: Prepared, size: int) -> dict[str, float]:
    """The figures of one optimizer step of the run on fake micro-batches of `size` samples, in this process
    alone: the step's own procedure, all its micro-batches, and the update. Changes the model."""
    config = prepared.config
    alone = replace(config, engine=replace(config.engine, type="local", deepspeed={}))
    seed_everything(config.seed, "step", 0, 0)
    groups = parameter_groups(prepared.model, config)
    engine = build_engine(alone, prepared.model, groups)
    procedure, plan = build_procedure(config), tasks_of_step(prepared.resolved, 0)
    spec = procedure.spec(0)
    micros = (
        MicroBatch(
            fake_batch(prepared, task, size).to(engine.device),
            spec,
            1 / prepared.resolved.micro_batches[task],
            last=number == len(plan) - 1,
        )
        for number, task in enumerate(plan)
    )
    steps = prepared.resolved.total_steps or 1
    rates = learning_rates(groups, 0, config, steps, trains=spec.trains, tasks=plan)
    sums = MetricSums()
    norm = procedure(StepWork(engine, micros, rates, sums, None, 0))
    return {**{name: mean(pair) for name, pair in sums.reduce(engine).items()}, "grad_norm": float(norm)}


def _classes(data: DataConfig, head: Task, number: int) -> ClassificationTargets:
    return ClassificationTargets(torch.randint(0, max(1, head.num_classes), (number,)))


def _clips(data: DataConfig, head: Task, number: int) -> ClipTargets:
    return ClipTargets(_classes(data, head, number).labels)


def _several(data: DataConfig, head: Task, number: int) -> MultiLabelTargets:
    return MultiLabelTargets(torch.randint(0, 2, (number, head.num_classes)).float())


def _masks(data: DataConfig, head: Task, number: int) -> MaskTargets:
    labels: Tensor = torch.randint(0, max(1, head.num_classes), (number, *data.size), dtype=torch.uint8)
    return MaskTargets(labels)


def _captions(data: DataConfig, head: Task, number: int) -> CaptionTargets:
    """Captions as long as the tokenizer allows, which take the most memory."""
    tokenizer = build_tokenizer(data.tokenizer or {})
    tokens = torch.full((number, tokenizer.context_length), tokenizer.pad_id)
    tokens[:, 1:-1] = torch.randint(0, tokenizer.vocab_size, (number, tokenizer.context_length - 2))
    tokens[:, 0], tokens[:, -1] = tokenizer.bos_id, tokenizer.eos_id
    return CaptionTargets(tokens, ((),) * number)


FAKES: dict[type, Callable[[DataConfig, Task, int], object]] = {
    ClassificationTargets: _classes,
    ClipTargets: _clips,
    MultiLabelTargets: _several,
    MaskTargets: _masks,
    CaptionTargets: _captions,
}
