"""Losses that teach the embeddings of a patched model, for any loop. B images, N positions, C channels.

The third way needs no function: a loss of your own on the model's outputs. In a phase in which the embeddings
learn, it reaches them through the differentiable merge.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.errors import ConfigError
from pipeline.interfaces import LogProbs
from pipeline.merging.schedule import ReductionSpec
from pipeline.modes import evaluation_mode
from pipeline.objectives.distill import divergence
from pipeline.objectives.draw import drawn_blocks
from pipeline.objectives.merge_cost import MergeCost, drawn_log_likelihood, drawn_projection
from pipeline.objectives.signal import LOGITS, SIGNALS, Signal
from pipeline.own_loop.phases import the_patched
from pipeline.rng import uniform
from pipeline.token_state import BackboneOutput

Reads = str | Callable[[BackboneOutput], Tensor]
"""What the losses look at: `logits` of the model's own classifier, its `pooled` features, the features of its
`patches`; or a function from the merged states to logits [..., K], for a head of your own."""


def merge_cost(
    model: nn.Module,
    images: Tensor,
    step: int,
    *,
    reads: Reads = LOGITS,
    reduction: ReductionSpec | None = None,
    micro: int = 0,
    seed: int = 0,
    temperature: float = 0.1,
    pairs: str = "first",
    prefix_alone: bool = False,
) -> Tensor:
    """What the merges of a block and of the later ones cost, see `pipeline.objectives.merge_cost`: a scalar,
    differentiable in the embeddings alone, without labels.

    images [B, 3, H, W]: as the model takes them. The block is drawn for (seed, step, micro), micro being the
    number of the micro-batch in the step; give the same on every rank. reduction: None takes the model's.
    prefix_alone: of a function, whether it reads no patches; True spares the last block, which then has no
    price. Of the model's own classifier and features it is known.
    Raises ConfigError.
    """
    patched, depth = the_patched(model), len(the_patched(model).merging_blocks)
    state = getattr(patched, "tower", patched).embedded(images).state
    wanted = patched.reduction if reduction is None else reduction
    schedule = patched.merging.policy.schedule(wanted, depth, state.num_active, state.num_prefix)
    alone = prefix_alone if callable(reads) else Signal(_known(reads)).reads_prefix_alone(patched)
    draw = uniform(seed, "draw", step, micro)
    blocks = drawn_blocks(schedule, draw, read=depth, prefix_alone=alone)
    part = list(schedule[: blocks[0]])
    output = _encode(patched, reads, images, reduction=part, relaxed=False, merge_points_from=blocks[0])
    outcomes = _read(patched, reads, output)
    if callable(reads) or reads == LOGITS:
        likelihood = drawn_log_likelihood(LogProbs(outcomes.log_softmax(dim=-1)))
    else:
        likelihood = drawn_projection(outcomes)
    patches = state.num_active - state.num_prefix
    objective = MergeCost(temperature=temperature, pairs=pairs)
    return objective.cost_of(output.merge_points, likelihood, blocks, schedule, patches)


def distill(
    model: nn.Module,
    images: Tensor,
    *,
    reads: Reads = LOGITS,
    reduction: ReductionSpec | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """How the merged model's answers differ from its own without merging, which have no gradient: a scalar,
    without labels.

    Of logits the divergence, see `pipeline.objectives.distill`; of features the squared distance, as a share
    of the unmerged features' square. images, reduction: as those of `merge_cost`. Raises ConfigError.
    """
    patched = the_patched(model)
    with torch.no_grad(), evaluation_mode(patched):
        whole = _read(patched, reads, _encode(patched, reads, images, reduction=0, relaxed=False))
    merged = _read(patched, reads, _encode(patched, reads, images, reduction=reduction))
    if callable(reads) or reads == LOGITS:
        given, wanted = (LogProbs(found.log_softmax(dim=-1)) for found in (merged, whole))
        return divergence(given, wanted, temperature)
    return ((merged - whole).flatten(1).square().sum(1) / whole.flatten(1).square().sum(1)).mean()


def _encode(patched: MergingModel, reads: Reads, images: Tensor, **options: Any) -> BackboneOutput:
    return Signal("" if callable(reads) else _known(reads)).encode(patched, images, **options)


def _read(patched: MergingModel, reads: Reads, output: BackboneOutput) -> Tensor:
    """float32 or wider."""
    if not callable(reads):
        return Signal(_known(reads)).read(patched, output)
    found = reads(output)
    return found.to(torch.promote_types(found.dtype, torch.float32))


def _known(reads: str) -> str:
    if reads not in SIGNALS:
        raise ConfigError(f"reads is '{reads}'; give {', '.join(SIGNALS)} or a function of the merged states")
    return reads
