"""The model of a run: a shared backbone, a head per task, and the objective that computes the loss of a
batch."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor, nn

from pipeline.backbone.backbone import Backbone
from pipeline.backbone.build import build_backbone
from pipeline.backbone.macs import reduction_for_macs
from pipeline.backbone.metric import EmbeddingSpec
from pipeline.backbone.rotary import RotaryRule
from pipeline.balancing import Balancing, Fixed, build_balancing
from pipeline.config.schema import ReductionConfig, RunConfig, TaskConfig
from pipeline.errors import ConfigError
from pipeline.interfaces import (
    JOINT_STEP,
    Batch,
    Encode,
    Scores,
    StepSpec,
    Tallies,
    Task,
    TaskData,
    TaskOutput,
)
from pipeline.merging.schedule import AnyReduction, ReductionSpec
from pipeline.objectives import OBJECTIVES, Objective
from pipeline.parts import HEAD, TRAINED, ModulesOfTasks
from pipeline.peers import check_peers, joint_output, joint_scores, joint_tallies
from pipeline.plan.facts import fed_tasks, merging_of
from pipeline.refusals import check_inputs, check_losses, check_token_mixing
from pipeline.registry import Registry
from pipeline.start_weights import load_start
from pipeline.token_state import BackboneOutput, Grid

T = TypeVar("T")
TASKS: Registry[Task] = Registry("task")
"""Tasks by name. Import the package `tasks`, which fills it, before building a model."""


class Heads(ModulesOfTasks[Task]):
    """Maps a task to its head."""

    part_kind = HEAD


class MultiTaskModel(nn.Module):
    """The model of a run, for engines. `forward` computes the training loss, `predict` runs one task,
    `evaluate` counts, and `scores` computes metrics from the counts."""

    def __init__(
        self,
        backbone: Backbone,
        tasks: Mapping[str, Task],
        objective: Objective,
        *,
        balancing: Balancing | None = None,
        reductions: Mapping[str, ReductionSpec] | None = None,
    ):
        """balancing: None gives all losses the weight 1. reductions: those of tasks that have their own."""
        super().__init__()
        self.backbone = backbone
        self.tasks = Heads(tasks)
        self.objective = objective
        objective.prepare(backbone, list(tasks.values()))
        self.balancing = balancing or Fixed(dict.fromkeys(tasks, 1.0))
        self.peer: MultiTaskModel | None = None
        """A second network that is trained beside this one (`backbone.peers`)."""
        self._reductions = dict(reductions or {})
        self._like: dict[str, str] = {}

    def forward(self, batch: Batch, spec: StepSpec = JOINT_STEP) -> TaskOutput:
        """Output of a batch with its training loss, times the task's weight. With a peer see
        `joint_output`."""
        if self.peer is None:
            return self._output(batch, spec)
        # its mode says that it is a pass of training, as this model's does
        self.peer.training = self.training
        return joint_output([self._output(batch, spec), self.peer(batch, spec)])

    def _output(self, batch: Batch, spec: StepSpec) -> TaskOutput:
        output: TaskOutput = self.objective(self, batch, spec)
        loss, weight = self.balancing.weigh(batch.task, output.loss, output.losses)
        logs = output.logs if weight is None else output.logs | {"weight": (weight, 1)}
        return replace(output, loss=loss, logs=logs, unweighed=output.loss.detach(), parts=output.losses)

    def predict(
        self, batch: Batch, *, reduction: ReductionSpec | None = None, relaxed: bool | None = None
    ) -> TaskOutput:
        """Output of a batch with the task's own loss and predictions."""
        head = self.tasks[batch.task]
        options = {"relaxed": relaxed, "prefix_alone": head.reads_prefix_alone}
        return head(self.encode_batch(batch, reduction=reduction, **options), batch)

    def encode_batch(
        self, batch: Batch, *, reduction: ReductionSpec | None = None, **options: Any
    ) -> BackboneOutput:
        """`encode` of a batch of training, with what travels with its tokens for the loss of its head. Where
        this model is in training mode, its tokens are mixed as its task says."""
        task = self.tasks[batch.task]
        if self.training and task.token_mixing is not None:
            options = options | {"mixing": task.mixing(batch)}
        carried = task.carried(batch)
        return self.encode(batch.task, batch.images, reduction=reduction, carried=carried, **options)

    def encode(
        self, task: str, images: Tensor, *, reduction: ReductionSpec | None = None, **options: Any
    ) -> BackboneOutput:
        """The backbone's output for images [B, 3, H, W] or clips [B, T, 3, H, W], with the taps that the task
        reads. reduction: None takes the task's own, else the backbone's. options: see MergingViT. The mode of
        this model, not of its parts, decides whether it is a pass of training."""
        head = self.tasks[task]
        options = {"taps": head.taps, "unmerge": head.unmerge, "training": self.training} | options
        return self.backbone(
            images, reduction=self.reduction_of(task, reduction), task=self._like.get(task, task), **options
        )

    def reduction_of(self, task: str, reduction: ReductionSpec | None = None) -> ReductionSpec | None:
        """The reduction, else the task's own; None where the task takes the backbone's."""
        return self._reductions.get(self._like.get(task, task)) if reduction is None else reduction

    def schedule(self, task: str, grid: Grid, reduction: ReductionSpec | None = None) -> tuple[int, ...]:
        """r of each block for the task's input of a grid of patches."""
        return self.backbone.schedule(grid, self.reduction_of(task, reduction))

    def set_reduction(self, task: str, reduction: ReductionSpec) -> None:
        """Sets the reduction of a task, which applies where no other is given."""
        self._reductions[task] = reduction

    def add_task(self, name: str, task: Task, *, like: str) -> None:
        """Adds a head, whose images are merged with the reduction and the metric embedding of the task
        `like`."""
        self.tasks[name] = task
        self._like[name] = like

    def check_data(self, data: Mapping[str, TaskData]) -> None:
        """Raises ConfigError with all heads that do not fit their data. data: task -> its data."""
        mistakes: list[str] = []
        for name, own in data.items():
            task = self.tasks[name]
            try:
                if own.gives is not task.reads:
                    given, read = own.gives.__name__, task.reads.__name__
                    raise ConfigError(
                        f"its stream gives {given}, which no head reads: its own reads {read}; give "
                        "another data.schema"
                    )
                task.check_classes(own.classes)
            except ConfigError as err:
                mistakes.append(f"tasks.{name}: {err}")
        if mistakes:
            raise ConfigError("\n  ".join(mistakes))

    def evaluate(self, batch: Batch, *, reduction: AnyReduction | None = None) -> Tallies:
        """The task's tallies of a batch, under the merge of inference. reduction: see `encoder`. With a peer
        they are those of the mean of both networks' logits, and of each."""
        if self.peer is not None:
            spec = reduction if reduction is not None else self.reduction_of(batch.task)
            spec = self.backbone.reduction if spec is None else spec
            encoders = [network.encoder(batch.task, spec) for network in self.networks]
            return joint_tallies([network.tasks[batch.task] for network in self.networks], encoders, batch)
        return self.tasks[batch.task].evaluate(self.encoder(batch.task, reduction), batch)

    @property
    def networks(self) -> "tuple[MultiTaskModel, ...]":
        """The model, and its peer where it has one."""
        return (self,) if self.peer is None else (self, self.peer)

    def as_forward(self, function: Callable[["MultiTaskModel"], T]) -> T:
        """`function(self)`, as one forward pass: an engine that divides the weights gathers them for it."""
        return function(self)

    def encoder(self, task: str, reduction: AnyReduction | None = None) -> Encode:
        """The function that runs the backbone for the task under the merge of inference.

        reduction: None takes the task's own. A function gets the grid of each input, so that inputs of all
        sizes can merge the same share.
        """

        def encode(images: Tensor) -> BackboneOutput:
            spec = reduction(self.backbone.grid_of(images)) if callable(reduction) else reduction
            return self.encode(task, images, reduction=spec, relaxed=False, training=False)

        return encode

    def scores(self, task: str, tallies: Tallies, *, thorough: bool = False) -> Scores:
        """The task's metrics from tallies that were added up over batches and ranks, with `samples`, their
        number. thorough: see Task."""
        if self.peer is not None:
            return joint_scores(self.tasks[task], tallies, thorough=thorough)
        return self.tasks[task].scores(tallies, thorough=thorough)


def build_model(config: RunConfig) -> MultiTaskModel:
    """The model of a run with its starting weights. Raises ConfigError and CheckpointError."""
    model = _network(config)
    if config.backbone.peers == 2:
        check_peers({name: model.tasks[name] for name in config.tasks})
        model.peer = _network(config)
    return model


def _network(config: RunConfig) -> MultiTaskModel:
    spec, merging = config.backbone, config.merging
    backbone = build_backbone(
        spec.name,
        frames=spec.frames,
        tubelet=spec.tubelet,
        policy=merging.policy,
        img_size=spec.img_size,
        proportional_attention=spec.proportional_attention,
        grad_checkpointing=spec.grad_checkpointing,
        drop_path=spec.drop_path,
        timm_options=spec.options,
        embedding=EmbeddingSpec(merging.embedding, tuple(config.tasks), merging.adapter_rank),
        rotary=RotaryRule(merging.rotary, merging.rotary_bias),
        **merging.options,
    )
    backbone.set_reduction(_reduction(backbone, merging))
    tasks = {name: TASKS.build(task.type, backbone, **task.head) for name, task in config.tasks.items()}
    check_inputs(backbone, tasks)
    objective = OBJECTIVES.build(config.objective.type, **config.objective.options)
    check_losses(config, tasks, objective)
    own = {name: task for name, task in config.tasks.items() if task.merging is not None}
    model = MultiTaskModel(
        backbone,
        tasks,
        objective,
        balancing=_balancing(config, objective, tasks),
        reductions={
            name: _reduction(backbone, merging_of(config, name), training_grid(backbone, task))
            for name, task in own.items()
        },
    )
    check_token_mixing(
        config,
        tasks,
        objective,
        backbone.policy,
        lambda name, r: model.schedule(name, training_grid(backbone, config.tasks[name]), r),
    )
    load_start(model, config)
    return model


def _balancing(config: RunConfig, objective: Objective, tasks: Mapping[str, Task]) -> Balancing:
    """The balancing of the losses of the steps that train what the first one trains."""
    mode, fed = config.train.mode, fed_tasks(config)
    trains = TRAINED["backbone" if mode == "end_to_end" else mode]
    return build_balancing(
        config.balancing,
        {name: task.weight for name, task in fed.items()},
        {name: objective.losses(tasks[name], trains) for name in fed},
    )


def _reduction(backbone: Backbone, asked: ReductionConfig, grid: Grid | None = None) -> ReductionSpec:
    """The reduction, or the one that reaches the target for inputs of the grid (None: the backbone's)."""
    if asked.target_macs or asked.target_gmacs:
        return reduction_for_macs(
            backbone, asked.target_macs, grid, gmacs=asked.target_gmacs, within=asked.within
        )
    return asked.reduction


def training_grid(backbone: Backbone, task: TaskConfig) -> Grid:
    """Grid of patches of the task's training crop."""
    return backbone.grid if task.data.img_size is None else backbone.grid_of_size(task.data.size)
