"""The one module that is trained: a shared backbone, a head per task, and the objective that turns a batch into a loss."""

import logging
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pipeline.backbone.build import build_backbone, create_vit
from pipeline.backbone.load import load_weights, read_state_dict
from pipeline.backbone.vit import MergingViT
from pipeline.config.schema import RunConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.interfaces import Batch, Encode, Scores, Tallies, TaskOutput
from pipeline.merging.macs import reduction_for_macs
from pipeline.merging.schedule import GridReduction, ReductionSpec
from pipeline.objectives import OBJECTIVES
from pipeline.registry import Registry
from pipeline.token_state import BackboneOutput

log = logging.getLogger(__name__)

TASKS: Registry[nn.Module] = Registry("task")
"""Filled by the package `tasks`, which whoever builds a model imports."""


class MultiTaskModel(nn.Module):
    """What an engine is given. `forward` trains, `predict` runs one task, `evaluate` counts, `scores` divides."""

    def __init__(self, backbone: MergingViT, tasks: Mapping[str, nn.Module], objective: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.tasks = nn.ModuleDict(tasks)
        self.objective = objective

    def forward(
        self, batch: Batch, *, reduction: ReductionSpec | None = None, relaxed: bool | None = None, draw: float = 0.0
    ) -> TaskOutput:
        """The training loss of a batch. reduction, relaxed: see MergingViT.forward.

        draw: a number in [0, 1), the same on all ranks, for objectives that choose at random what they compute.
        """
        return self.objective(self, batch, reduction=reduction, relaxed=relaxed, draw=draw)

    def predict(self, batch: Batch, *, reduction: ReductionSpec | None = None, relaxed: bool | None = None) -> TaskOutput:
        """The task's own loss and predictions."""
        task: Any = self.tasks[batch.task]
        output = self.backbone(batch.images, reduction=reduction, taps=task.taps, unmerge=task.unmerge, relaxed=relaxed)
        return task(output, batch)

    def check_data(self, loaders: Mapping[str, Any]) -> None:
        """loaders: of each task, with the `classes` of its shards. Raises ConfigError where a head does not fit its data."""
        for name, loader in loaders.items():
            task: Any = self.tasks[name]
            try:
                task.check_classes(loader.classes)
            except ConfigError as err:
                raise ConfigError(f"tasks.{name}: {err}") from err

    def evaluate(self, batch: Batch, *, reduction: ReductionSpec | GridReduction | None = None) -> Tallies:
        """What the task counts over a batch, under the merge of inference. reduction: see `encoder`."""
        task: Any = self.tasks[batch.task]
        return task.evaluate(self.encoder(batch.task, reduction), batch)

    def encoder(self, task: str, reduction: ReductionSpec | GridReduction | None = None) -> Encode:
        """The backbone under the merge of inference, with what the task reads.

        reduction: None is the backbone's own. A function is asked for each input's grid, so that inputs of all sizes can merge one share.
        """
        head: Any = self.tasks[task]

        def encode(images: Tensor) -> BackboneOutput:
            asked = reduction(self.backbone.grid_of(images)) if callable(reduction) else reduction
            return self.backbone(images, reduction=asked, taps=head.taps, unmerge=head.unmerge, relaxed=False)

        return encode

    def scores(self, task: str, tallies: Tallies, *, thorough: bool = False) -> Scores:
        """The task's metrics from tallies that were added up over batches and ranks, with `samples` among them. thorough: see Task."""
        head: Any = self.tasks[task]
        return head.scores(tallies, thorough=thorough)


def build_model(config: RunConfig) -> MultiTaskModel:
    """The model of a run with its starting weights. Raises ConfigError, CheckpointError."""
    spec, merging = config.backbone, config.merging
    backbone = build_backbone(
        spec.name,
        policy=merging.policy,
        img_size=spec.img_size,
        proportional_attention=spec.proportional_attention,
        grad_checkpointing=spec.grad_checkpointing,
        drop_path=spec.drop_path,
        timm_options=spec.options,
        **merging.options,
    )
    if merging.target_macs or merging.target_gmacs:
        backbone.set_reduction(reduction_for_macs(backbone, merging.target_macs, gmacs=merging.target_gmacs, within=merging.within))
    else:
        backbone.set_reduction(merging.reduction)
    tasks = {name: TASKS.build(task.type, backbone, **task.head) for name, task in config.tasks.items()}
    bad = [name for name in tasks if not re.fullmatch(r"\w+", name)]
    if bad:
        raise ConfigError(f"task names {bad} are not identifiers; they become part of parameter names")
    model = MultiTaskModel(backbone, tasks, OBJECTIVES.build(config.objective.type, **config.objective.options))
    _load_start(model, config)
    return model


def _load_start(model: MultiTaskModel, config: RunConfig) -> None:
    """The weights that training starts from, and what they filled. In modular training what they lack would stay random for good."""
    spec = config.backbone
    sources: dict[str, Mapping[str, Tensor]] = {}
    if spec.pretrained:
        vit = create_vit(spec.name, pretrained=True, num_classes=None, img_size=spec.img_size, timm_options=spec.options)
        sources[f"timm's {spec.name}"] = vit.state_dict()
    if spec.weights:
        sources[spec.weights] = read_state_dict(spec.weights)
    for source, tensors in sources.items():
        report = load_weights(model, tensors)
        log.info("%s: %s", source, report)
        lacking = [name for name in report.missing if ".metric." not in name]
        if lacking and config.train.mode == "modular":
            raise CheckpointError(
                f"{source} has no {lacking[0]} ({len(lacking)} tensors in all), which train.mode='modular' would freeze as it was drawn; "
                "give weights that have it, or train it first with train.mode='backbone'"
            )
