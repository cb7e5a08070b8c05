"""An objective that teaches the metric the cost of merges: the similarity of two tokens should be high where
their merge changes the predictions little.

In the paper's relaxation the embedding learns from a loss behind soft merges, which hardly merge. This
objective computes the cost of every pair of tokens instead, from one backward pass, without labels or a
relaxed pass.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.interfaces import Batch, LogProbs, StepSpec, Task, TaskOutput
from pipeline.merging.schedule import merged_shares
from pipeline.objectives.draw import drawn_blocks
from pipeline.objectives.objective import OBJECTIVES, Model, Objective
from pipeline.objectives.prices import cost_with_slope
from pipeline.parts import METRIC
from pipeline.token_state import MergePoint


@OBJECTIVES.register("merge_cost")
class MergeCost(Objective):
    """The mean over blocks of `pipeline.objectives.prices.expected_cost`; no gradient reaches the backbone.

    Each step draws a block among those that merge and have a price (`pipeline.objectives.draw`). The blocks
    before it merge, with the step's reduction; it and all later blocks do not merge, and the pairs of those
    with a price get costs. So a block learns from merged tokens, as in inference. It fits modular training,
    and end_to_end, whose backbone steps take the task's own loss under the hard merge. temperature: that of
    the choice among pairs. pairs: `first`, the cost of the first pair, for any reduction; or `merged`, that
    of as many pairs as the step's reduction merges, for large reductions. Raises ConfigError.
    """

    def __init__(self, *, temperature: float = 0.1, pairs: str = "first"):
        super().__init__()
        if temperature <= 0:
            raise ConfigError(f"merge_cost: temperature is {temperature}; give a number above 0")
        if pairs not in ("first", "merged"):
            raise ConfigError(f"merge_cost: pairs is {pairs!r}; give 'first' or 'merged'")
        self.temperature, self.pairs = temperature, pairs

    def losses(self, task: Task, trains: frozenset[str]) -> tuple[str, ...]:
        return ("merge_cost",) if METRIC in trains else task.losses

    def forward(self, model: Model, batch: Batch, spec: StepSpec) -> TaskOutput:
        """The cost of merging in steps that train embeddings, else the task's own loss. spec.draw picks the
        block."""
        if METRIC not in spec.trains:
            return model.predict(batch, reduction=spec.reduction, relaxed=spec.relaxed)
        task, grid = model.tasks[batch.task], model.backbone.grid_of(batch.images)
        read = model.backbone.depth if task.reads_final else max(task.taps) + 1
        schedule = model.schedule(batch.task, grid, spec.reduction)
        blocks = drawn_blocks(schedule, spec.draw, read=read, prefix_alone=task.reads_prefix_alone)
        first = blocks[0]
        output = model.encode_batch(
            batch, reduction=list(schedule[:first]), relaxed=False, merge_points_from=first
        )
        result = task(output, batch)
        points = output.merge_points[: read - first]
        likelihood = drawn_log_likelihood(task.log_probs(result, batch))
        loss = self.cost_of(points, likelihood, blocks, schedule, math.prod(grid))
        count = len(batch.images)
        logs = {"merge_cost": (loss.detach() * count, count), **result.logs}
        return TaskOutput(loss, logs, result.predictions, parts={"merge_cost": loss})

    def cost_of(
        self,
        points: Sequence[MergePoint],
        likelihood: Tensor,
        blocks: range,
        schedule: Sequence[int],
        patches: int,
    ) -> Tensor:
        """Mean cost over `blocks`; a scalar, differentiable once, in the metrics alone.

        points: of these blocks, and of further ones where the likelihood depends on their positions. None
        of them merged. Of the work for a block only the gradient in its metric is kept. likelihood: that of
        drawn outcomes, `drawn_log_likelihood` or `drawn_projection`. schedule: r of each block of the model.
        patches: their number before its first block.
        """
        later = [
            (point.rope, point.rope_probe)
            for point in points[1:]
            if point.rope is not None and point.rope_probe is not None
        ]
        probes = [*(point.probe for point in points[: len(blocks)]), *(probe for _, probe in later)]
        grads = torch.autograd.grad(likelihood, probes)
        positions = [(rope, grad) for (rope, _), grad in zip(later, grads[len(blocks) :], strict=True)]
        merged = self.pairs == "merged"
        shares = merged_shares(schedule, patches) if merged else [None] * len(schedule)
        costs = [
            cost_with_slope(points[i], grads[i], self.temperature, shares[block], positions[i:])
            for i, block in enumerate(blocks)
        ]
        return torch.stack(costs).mean()


def drawn_log_likelihood(log_probs: LogProbs) -> Tensor:
    """Sum of the log-likelihoods of outcomes, one drawn from each distribution that counts. A scalar; the
    square of its gradient estimates the Fisher information.

    The draws are Gumbel's maximum, which passes NaN on, by the global generator, and are made even where
    nothing counts.
    """
    values = log_probs.values
    noise = -torch.empty_like(values).exponential_().log()
    drawn = (values.detach() + noise).argmax(dim=-1, keepdim=True)
    likelihood = values.gather(-1, drawn).squeeze(-1)
    return (likelihood if log_probs.counts is None else torch.where(log_probs.counts, likelihood, 0.0)).sum()


def drawn_projection(features: Tensor) -> Tensor:
    """`drawn_log_likelihood` for a model that gives features [...] instead of distributions. A scalar.

    The features stand for a Gaussian of unit variance around them. The divergence of two such is half the
    squared distance of the features. Of an outcome y = features + noise the log-likelihood is
    -|y - features|^2 / 2, whose gradient in the features is the noise. So its gradient in the tokens is that
    of the inner product of features and noise, and E[g g^T] = J^T J with the Jacobian J, the Fisher
    information. The noise is drawn by the global generator of the features' device.
    """
    return (features * torch.randn_like(features)).sum()
