"""A block of a library's ViT in which tokens merge, between attention and MLP or right before the attention.

A merging block is a subclass of the library's block. Each family of blocks has a file in `hosts/`. B batch, M
tokens, C channels, H heads, D channels of a head.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbone.attention import Ahead, Mixed, Place
from pipeline.backbone.metric import EmbeddingPerTask, MetricEmbedding, beside_of
from pipeline.backbone.normed_embedding import embed_normed
from pipeline.backbone.partner import followed, following
from pipeline.backbone.saliency import with_saliency
from pipeline.backbone.threshold import Threshold
from pipeline.backbone.zero_gradient import with_zero_gradient
from pipeline.errors import ConfigError
from pipeline.merging.evidence import Evidence
from pipeline.merging.policy import MergePolicy, merge
from pipeline.merging.unmerge import carry_residual
from pipeline.token_state import PARTNER, MergePoint, TokenState


@dataclass(frozen=True)
class Attended:
    """The first half of a block. output [B, M, C]: its tokens, residual connection included; nobody reads it
    where the place only looks. tokens [B, M, C]: what the attention read, by which tokens are compared.
    scale: factor of its logits. norm: that of the block's input, which made `tokens`, where one did."""

    output: Tensor
    tokens: Tensor
    mixed: Mixed
    scale: float
    norm: nn.Module | None = None


def first_attended(attended: Attended, asked: int, count: int) -> Attended:
    """What the first `asked` of `count` tokens gave, where further tokens were attended to."""
    mixed = attended.mixed
    q, keys = mixed.q[:, :, :asked], mixed.keys[:, :, :count]
    mixed = replace(mixed, output=mixed.output[:, :, :asked], q=q, k=mixed.k[:, :, :count], keys=keys)
    output, tokens = attended.output[:, :asked], attended.tokens[:, :count]
    return replace(attended, output=output, tokens=tokens, mixed=mixed)


@dataclass(frozen=True)
class KeyLayer:
    """The linear layer of all heads' keys: weight [G D, C], bias [G D] or None."""

    weight: Tensor
    bias: Tensor | None


def key_layer_of(layer: object, rows: slice = slice(None)) -> KeyLayer | str:
    """The rows of a linear layer that make keys, or why its numbers are not to be read."""
    if not isinstance(layer, nn.Linear) or not layer.weight.is_floating_point():
        return f"what makes them is {type(layer).__name__}, not a linear layer of floats"
    return KeyLayer(layer.weight[rows], None if layer.bias is None else layer.bias[rows])


class MergingBlock(nn.Module):
    """The merge, and what a host says of its blocks: a host is a subclass, of this and of its block."""

    policy: MergePolicy
    metric: MetricEmbedding | EmbeddingPerTask | Threshold | None
    """The embedding by which a policy that learns compares tokens, or the threshold of one that masks."""
    reducer: nn.Module | None
    """What makes other tokens of all patches in this block, where the policy has such (`add_reducer`)."""
    recovery: nn.Module | None
    """What brings the patches back behind this block."""

    @staticmethod
    def refuses(block: nn.Module) -> str | None:
        """Why the merge would be computed wrongly in this block of the library; None where it would not."""
        return None

    @classmethod
    def passed_by(cls, block: nn.Module) -> Iterable[nn.Module]:
        """Parts of the library's block that merging does not call: it does their work with their
        parameters."""
        return ()

    def attend(self, x: Tensor, place: Place) -> Attended:
        """The attention of tokens x [B, M, C], with its norms, scales, drop path and residual connection."""
        raise NotImplementedError

    def key_layer(self) -> KeyLayer | str:
        """What makes the keys, before rotary positions, of what the attention reads (`Attended.tokens`); or
        why no linear layer does."""
        return "this block does not say how they are made"

    def can_ask(self) -> bool:
        """Whether `attend` follows `Place.queries`, and random numbers do not depend on how many tokens there
        are. It does not, unless a host says so."""
        return False

    def feed_forward(self, x: Tensor) -> Tensor:
        """Tokens x [B, M, C] after the MLP, with its norms, scales, drop path and residual connection."""
        raise NotImplementedError

    @property
    def halves(self) -> tuple[Iterable[nn.Module], Iterable[nn.Module]]:
        """The parts whose linear layers see the tokens before a merge between attention and MLP, and those
        that see the rest."""
        raise NotImplementedError

    @property
    def width(self) -> int:
        """C."""
        raise NotImplementedError

    @property
    def heads(self) -> tuple[int, int]:
        """H and D."""
        raise NotImplementedError

    @property
    def looking(self) -> tuple[int, int]:
        """MACs of linear layers, for one token: of attending where the place only looks, and those that
        attending ahead is spared."""
        macs = 2 * self.width * self.heads[0] * self.heads[1]
        return macs, macs

    def forward(
        self,
        state: TokenState,
        r: int,
        place: Place,
        *,
        relaxed: bool,
        task: str | None = None,
        depth: float = 0.0,
        tell: Callable[[MergePoint], None] | None = None,
    ) -> TokenState:
        """The state after the block, with r tokens less: they merge between attention and MLP, or at the
        block's entry where the policy looks `ahead` or merges `at_entry`. Where only the first tokens attend,
        no others go on, and none merge.

        place: sizes, where an earlier block merged, and rotary positions. relaxed: use the policy's
        differentiable merge. task: the one whose metric embedding decides, where tasks have their own. depth:
        the share of the model's blocks that lie before this one. tell: called with the block's MergePoint.
        Raises ConfigError where that is asked of a policy without a metric.
        """
        if r > 0 and self.policy.at_entry:
            state, r = merge(self.policy, self._nothing_known(state, depth), state, r), 0
            place = replace(place, size=state.size if place.by_size else place.size)
        in_inference = not (torch.is_grad_enabled() or torch.compiler.is_compiling())
        if r > 0 and self.metric is not None and in_inference:
            place = replace(place, beside=beside_of(self.metric, task))
        ahead = r > 0 and self.policy.ahead and tell is None
        if ahead:
            state, place = self._merged_first(state, r, place, relaxed, task, depth)
        before, attended = state.tokens, self._attended(state, following(place, state))
        state = followed(state, attended.mixed)
        if place.queries is not None:
            return self._first_alone(state, attended, relaxed and r > 0, task)
        state = state.with_tokens(attended.output)
        if ahead:
            return state.with_tokens(self.feed_forward(state.tokens))
        evidence = self._evidence(before, attended, place.size, task, depth)
        if place.salient is not None:
            state = with_saliency(state, evidence, place.salient)
        if tell is not None:
            point = self._observed(state, evidence)
            tell(point)
            state = carry_residual(state, state.with_tokens(point.probe))
        if self.reducer is not None and r > 0:
            state = self.reducer(state, r)
        else:
            state = merge(self.policy, evidence, state, r, relaxed=relaxed)
        state = state.with_tokens(self.feed_forward(state.tokens))
        return state if self.recovery is None else self.recovery(state)

    def _attended(self, state: TokenState, place: Place) -> Attended:
        """The attention of the state's tokens, to one another and to those of `Place.extra`."""
        if place.extra is None:
            return self.attend(state.tokens, place)
        assert place.size is None and place.rope is None, "no token has merged, and positions were added"
        count = state.tokens.shape[1]
        asked = place.queries or (count if self.can_ask() else None)
        every = torch.cat([state.tokens, place.extra], dim=1)
        attended = self.attend(every, replace(place, extra=None, queries=asked))
        return first_attended(attended, place.queries or count, count)

    def _nothing_known(self, state: TokenState, depth: float) -> Evidence:
        """Evidence at the block's entry, of which a policy reads nothing."""
        each = state.tokens[:, None]
        return Evidence(state.tokens, each, each, scale=1.0, depth=depth)

    def _merged_first(
        self, state: TokenState, r: int, place: Place, relaxed: bool, task: str | None, depth: float
    ) -> tuple[TokenState, Place]:
        """The state after a merge at the block's entry, by the attention that the block is about to compute,
        and the place in which it attends then."""
        looked = self.attend(state.tokens, replace(place, looks=True, beside=None))
        evidence = self._evidence(state.tokens, looked, place.size, task, depth)
        after = merge(self.policy, evidence, state, r, relaxed=relaxed)
        if after is state:
            return state, place
        q, k = looked.mixed.queries, looked.mixed.keys
        assert q is not None, "a place that looks gives them"
        return after, Place(ahead=Ahead(q, k, place, state.size, after.merges[-1]))

    def _evidence(
        self, before: Tensor, attended: Attended, size: Tensor | None, task: str | None, depth: float
    ) -> Evidence:
        """What the policy may look at. before [B, M, C]: the block's tokens; size: as in its attention."""
        mixed = attended.mixed
        options: dict[str, Any] = {"keys": mixed.keys, "size": size, "bias": mixed.bias}
        options |= {"depth": depth, "outputs": mixed.output}
        if isinstance(self.metric, Threshold):
            options["threshold"] = partial(self.metric, attended.tokens, task)
        elif mixed.beside is not None:
            options["embed"] = partial(_given, mixed.beside)
        elif self.metric is not None and attended.norm is not None:
            options["embed"] = partial(embed_normed, self.metric, task, attended.norm, before)
        elif self.metric is not None:
            options["embed"] = partial(self.metric, task=task)
        return Evidence(attended.tokens, mixed.q, mixed.k, scale=attended.scale, **options)

    def _first_alone(
        self, state: TokenState, attended: Attended, learns: bool, task: str | None
    ) -> TokenState:
        """The state of the tokens that attended, after the block. learns: a relaxed merge would reach the
        embedding, with a gradient of zero."""
        tokens, count = attended.output, attended.output.shape[1]
        if learns and self.metric is not None:
            tokens = with_zero_gradient(tokens, self.metric(attended.tokens[:, :1].detach(), task=task))
        carried = {name: item for name, item in state.carried.items() if name == PARTNER}
        tokens, size = self.feed_forward(tokens), state.size[:, :count]
        return replace(state, tokens=tokens, size=size, num_active=count, carried=carried)

    def _observed(self, state: TokenState, evidence: Evidence) -> MergePoint:
        """The input of the merge, and a probe: the same tokens under a name of their own, whose gradient can
        be taken even where the backbone is frozen."""
        metric = self.policy.metric(evidence)
        if metric is None:
            raise ConfigError(
                "merge points need a policy with a metric: give merging.policy='dtem' (or 'tome')"
            )
        tokens = state.tokens
        probe = tokens.view_as(tokens) if tokens.requires_grad else tokens.detach().requires_grad_()
        return MergePoint(state, metric, probe, partition=self.policy.partition)


def _given(embedding: Tensor, tokens: Tensor) -> Tensor:
    return embedding
