"""A budget of computation for thresholds that are learned (AS-ViT, Liu et al., IJCAI 2023): masks keep as
many patches of an image as pay, and the mean over images is drawn to a share of the unmasked MACs.

Ours: the budget is one over the images of all ranks, and counts the MACs of the blocks alone; the teacher is
the model itself without masks, and not a frozen copy of it as it was. B images, N tokens at the input.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from pipeline.backbone.block import MergingBlock
from pipeline.backbone.macs import factors
from pipeline.backbone.threshold import Threshold
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, StepSpec, Task, TaskOutput
from pipeline.merging.apply import sizes_after
from pipeline.modes import evaluation_mode
from pipeline.objectives.distill import divergence
from pipeline.objectives.objective import OBJECTIVES, Model, Objective
from pipeline.parts import METRIC
from pipeline.ranks import Processes
from pipeline.token_state import TokenState

GIGA = 1e9


@OBJECTIVES.register("budget")
class Budget(Objective):
    """The task's own loss, plus `weight` times how far the mean GMACs of an image's blocks are from `ratio`
    times those without masks, plus `distill` times the disagreement with the model itself without masks.

    The GMACs have a gradient in the thresholds of a policy that masks. In steps under the merge of inference
    they are fixed, and left out; so they are with other policies. temperature: of the predictions in the
    disagreement. Each micro-batch is noted in the mean share that a threshold keeps. Raises ConfigError.
    """

    def __init__(
        self, *, ratio: float = 0.65, weight: float = 2.0, distill: float = 0.5, temperature: float = 1.0
    ):
        super().__init__()
        if not (0 < ratio <= 1 and weight > 0 and distill >= 0 and temperature > 0):
            raise ConfigError(
                f"budget: ratio {ratio} must be in (0, 1], weight {weight} and temperature {temperature} "
                f"above 0, and distill {distill} 0 or more"
            )
        self.ratio, self.weight, self.distill, self.temperature = ratio, weight, distill, temperature

    def losses(self, task: Task, trains: frozenset[str]) -> tuple[str, ...]:
        distilled = ("distill",) if self.distill else ()
        return (*task.losses, *distilled, *(("budget",) if METRIC in trains else ()))

    def forward(self, model: Model, batch: Batch, spec: StepSpec) -> TaskOutput:
        task = model.tasks[batch.task]
        with torch.no_grad(), evaluation_mode(model):
            teacher = model.predict(batch, reduction=0, relaxed=False) if self.distill else None
        schedule = model.schedule(batch.task, model.backbone.grid_of(batch.images), spec.reduction)
        options = {"relaxed": spec.relaxed, "prefix_alone": task.reads_prefix_alone}
        encoded = model.encode_batch(batch, reduction=list(schedule), **options)
        student = task(encoded, batch)
        loss, logs, count = student.loss, dict(student.logs), len(batch.images)
        parts = dict(student.losses)
        if teacher is not None:
            own, wanted = (task.log_probs(output, batch) for output in (student, teacher))
            gap = divergence(own, wanted, self.temperature)
            parts["distill"] = self.distill * gap
            loss, logs["distill"] = loss + parts["distill"], (gap.detach() * count, count)
        if spec.relaxed and model.backbone.policy.masks:
            counts = tokens_left(encoded.final, schedule)
            blocks = cast("list[MergingBlock]", list(model.backbone.blocks))
            excess, gmacs = self.excess(blocks, encoded.final, counts)
            parts["budget"] = self.weight * excess
            loss, logs["gmacs"] = loss + parts["budget"], (gmacs * count, count)
        return replace(student, loss=loss, logs=logs, parts=parts)

    def excess(
        self, blocks: Sequence[MergingBlock], state: TokenState, counts: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """How far the mean GMACs of all ranks are from the budget, a scalar with gradient, and these GMACs.
        counts: see `tokens_left`. With more than one rank the call is a collective.

        The gradients of ranks average to that of the mean over all images. Thresholds note what they kept.
        """
        start = math.prod(state.grid) + state.num_prefix
        macs = gmacs_of(blocks, start, counts)
        full = gmacs_of(blocks, start, [start] * len(counts))
        ranks = Processes(macs.device)
        totals = torch.stack([macs.sum(), *(left.sum() for left in counts)]).detach()
        images = ranks.all_reduce(macs.new_full((), len(macs))).clamp(min=1)
        gmacs, *left = ranks.all_reduce(totals) / images
        for block, kept in zip(blocks, left, strict=True):
            note(block, (kept - state.num_prefix) / max(1, start - state.num_prefix))
        own = macs.sum() * ranks.world_size / images
        away = gmacs - self.ratio * full
        return away.abs() + away.sign() * (own - own.detach()), gmacs


def note(block: MergingBlock, share: Tensor) -> None:
    if isinstance(block.metric, Threshold):
        block.metric.note(share)


def tokens_left(state: TokenState, schedule: Sequence[int]) -> list[Tensor]:
    """[B] float32 or wider for each block: how many tokens no mask hides behind it, prefix included, with the
    gradient of the masks. state: the last one, of a relaxed pass; schedule: r of each block."""
    batch, start = len(state.tokens), math.prod(state.grid) + state.num_prefix
    merges, size = iter(state.merges), state.size.new_ones(batch, start)
    counts: list[Tensor] = []
    for r in schedule:
        merge = next(merges, None) if r > 0 else None  # the last block merges none where nobody reads patches
        if merge is not None:
            (size,) = sizes_after([merge], size)
        counts.append(size.sum(dim=1))
    return counts


def gmacs_of(blocks: Sequence[MergingBlock], start: int, counts: Sequence[Any]) -> Any:
    """GMACs of the blocks for an image that enters with `start` tokens, of which so many are left behind each
    block, as if masked tokens were removed; without what the policy needs. counts: numbers, or tensors [B],
    in which the result, [B], is differentiable."""
    before = [start, *counts[:-1]]
    macs = (factors(block) for block in blocks)
    return sum(
        (first * enter + pair * enter * enter + second * leave) / GIGA
        for (first, pair, second), enter, leave in zip(macs, before, counts, strict=True)
    )
