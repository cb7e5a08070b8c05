"""i-Mix (Lee et al., ICLR 2021): mixup without labels. Each image of a batch gets a virtual label, its place;
images are mixed, and so are the virtual labels by which they are told among keys of images that were not.

Ours: the partner of an image is the one a drawn number of places on, in place of a drawn permutation; of a
captioner the images alone are mixed, captions are the keys, and the captions' side learns the same labels
turned around. B images, S samples, C channels, E embedding.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbone.backbone import Backbone
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, StepSpec, Sums, Task, TaskOutput
from pipeline.objectives.contrast import (
    Blend,
    check_equal,
    gathered,
    instance_loss,
    own_places,
    products,
)
from pipeline.objectives.objective import OBJECTIVES, Model, Objective
from pipeline.parts import HEAD
from pipeline.ranks import Processes
from pipeline.rng import seed_of


@OBJECTIVES.register("i_mix")
class IMix(Objective):
    """Contrast of mixed images with keys of whole ones.

    Of a task that compares images with captions, it is the task's own loss, whose contrastive part reads
    mixed images in a pass of their own. Of a task with one class per image no label is read: an image's key
    is its other view, or itself where `data.views` is 1, and two layers behind the features make queries and
    keys (SimCLR's projection, N-pair loss). The head of classes stays as it is.

    alpha: the share of an image is drawn from Beta(alpha, alpha), and the larger of it and its rest is taken;
    0 mixes nothing, and is plain contrast. temperature, dim: of the products, and E, without captions.
    Partners are images of the same rank, drawn in each step. Raises ConfigError.
    """

    part_kind = HEAD

    def __init__(self, *, alpha: float = 1.0, temperature: float = 0.2, dim: int = 128):
        super().__init__()
        if not (0 <= alpha < 1e6 and temperature > 0 and dim > 0):
            raise ConfigError(
                f"i_mix: alpha {alpha} must be 0 (plain contrast) or more, and temperature {temperature} "
                f"and dim {dim} above 0"
            )
        self.alpha, self.temperature, self.dim = alpha, temperature, dim
        self.projection: nn.Sequential | None = None

    def prepare(self, backbone: Backbone, tasks: Sequence[Task]) -> None:
        if any(task.has_one_class for task in tasks):
            width = backbone.embed_dim
            self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.dim))

    def refuses(self, task: Task) -> str | None:
        if task.contrasts or task.has_one_class:
            return None
        return (
            f"objective 'i_mix' compares images with one another or with captions, and "
            f"{type(task).__name__} does "
            "neither (a captioner does with contrastive_weight above 0); give objective.type='supervised'"
        )

    def forward(self, model: Model, batch: Batch, spec: StepSpec) -> TaskOutput:
        """spec.draw draws the share, and with the rank the partners."""
        task = model.tasks[batch.task]
        if task.contrasts:
            return self._with_captions(model, batch, spec)
        return self._of_instances(model, batch, spec)

    def blend(self, samples: int, views: int, draw: float, rank: int) -> Blend:
        """How images of so many samples are mixed, each with one of another sample. The share is the same on
        every rank."""
        if self.alpha == 0 or samples < 2:
            return Blend(1.0, 0)
        share = float(np.random.default_rng(seed_of("i_mix", repr(draw))).beta(self.alpha, self.alpha))
        drawn = np.random.default_rng(seed_of("i_mix", repr(draw), rank)).integers(1, samples)
        return Blend(max(share, 1 - share), views * int(drawn))

    def _with_captions(self, model: Model, batch: Batch, spec: StepSpec) -> TaskOutput:
        """The task's loss, whose contrastive part is that of mixed images."""
        task, rank = model.tasks[batch.task], Processes(batch.images.device).rank
        blend = self.blend(len(batch.images) // batch.views, batch.views, spec.draw, rank)
        options: dict[str, Any] = {
            "reduction": spec.reduction,
            "relaxed": spec.relaxed,
            "prefix_alone": task.reads_prefix_alone,
        }
        whole = model.encode_batch(batch, **options)
        mixed = model.encode_batch(replace(batch, images=blend.mixed(batch.images)), **options)
        output = task.contrasted(whole, mixed, batch, blend)
        return replace(output, logs={**output.logs, "own_share": (_share(blend, batch), len(batch.images))})

    def _of_instances(self, model: Model, batch: Batch, spec: StepSpec) -> TaskOutput:
        if batch.views > 2:
            raise ConfigError(
                f"tasks.{batch.task}: objective 'i_mix' compares one view of a sample with another, and "
                f"data.views is {batch.views}; give 1 or 2"
            )
        task, images = model.tasks[batch.task], batch.images
        ranks = Processes(images.device)
        seen, keys = images[:: batch.views], images[batch.views - 1 :: batch.views]
        check_equal(len(seen), ranks)
        blend = self.blend(len(seen), 1, spec.draw, ranks.rank)
        every = torch.cat([blend.mixed(seen), keys])
        options: dict[str, Any] = {"relaxed": spec.relaxed, "prefix_alone": task.reads_prefix_alone}
        encoded = model.encode(batch.task, every, reduction=spec.reduction, **options)
        queries, keys = self.projected(task.image_features(encoded)).chunk(2)
        logits = products(queries, gathered(keys)) / self.temperature
        own, count = own_places(len(queries), images.device), len(queries)
        loss = instance_loss(logits, own, blend)
        found = (logits.detach().argmax(dim=1) == own).sum().float()
        logs: Sums = {
            "loss": (loss.detach() * count, count),
            "found": (found, count),
            "own_share": (_share(blend, batch) / batch.views, count),
        }
        return TaskOutput(loss, logs)

    def projected(self, features: Tensor) -> Tensor:
        """Vectors [B, E] float32, of norm 1, of features [B, C]."""
        assert self.projection is not None, "a model prepares its objective"
        return F.normalize(self.projection(features).float(), dim=-1)


def _share(blend: Blend, batch: Batch) -> Tensor:
    """The sum over the batch's images of their own share, on the device."""
    return batch.images.new_full((), blend.share, dtype=torch.float32) * len(batch.images)
