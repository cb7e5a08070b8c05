"""MCTF (Lee, Choi & Kim, CVPR 2024): tokens merge by several criteria at once.

B batch, M tokens, Na sources, Nb destinations.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.merging.evidence import Evidence
from pipeline.merging.matching import Split, match, match_both_ways, parity_split, similarity
from pipeline.merging.policy import POLICIES, MergePolicy
from pipeline.merging.rows import SMALLEST_WEIGHT
from pipeline.token_state import Assignment, TokenState

POOLINGS = ("attention", "size")


@POLICIES.register("mctf")
class MCTF(MergePolicy):
    """Merges pairs that are alike, receive little attention, and are small.

    The score of a pair is similarity^(1/t_similarity) * (u_a u_b)^(1/t_attention) * (s_a s_b)^(1/t_size), all
    in [0, 1]: similarity is (cosine + 1) / 2 of the tokens themselves, u is 1 over the attention that a token
    receives and s 1 over its size, each as a part of the image's largest. The temperature None leaves a
    criterion out. both_ways: half of the merges go from destinations to sources (`match_both_ways`). pooling:
    the weight of a token in a mean; `attention` is that which it receives, times its size, or `size`.
    one_step_ahead: merge before the block's attention, by its weights, which are merged too; else behind it.
    Training is by the hard merge, through which no gradient reaches the choice or the weights. Raises
    ConfigError.
    """

    needs = frozenset({"received"})
    requires = frozenset({"merged_attention"})

    def __init__(
        self,
        *,
        t_similarity: float | None = 1.0,
        t_attention: float | None = 20.0,
        t_size: float | None = 40.0,
        both_ways: bool = True,
        pooling: str = "attention",
        one_step_ahead: bool = True,
    ):
        temperatures = {"t_similarity": t_similarity, "t_attention": t_attention, "t_size": t_size}
        for name, value in temperatures.items():
            if value is not None and not value > 0:
                raise ConfigError(f"mctf: {name} is {value!r}; give a number above 0, or None for no effect")
        if pooling not in POOLINGS:
            raise ConfigError(f"mctf: pooling is {pooling!r}; give one of {', '.join(POOLINGS)}")
        self.exponents = [0.0 if value is None else 1 / value for value in temperatures.values()]
        self.match = match_both_ways if both_ways else match
        self.by_attention, self.conserves = pooling == "attention", pooling == "size"
        self.ahead = one_step_ahead

    def macs(
        self, num_tokens: int, num_prefix: int, r: int, widths: Mapping[str, int], *, merged: bool
    ) -> int:
        """Those of the similarities of the tokens that merge."""
        num_sources, num_destinations = Split.by_parity(num_tokens, num_prefix).counts
        return num_sources * num_destinations * widths["tokens"]

    def choose(self, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool) -> Assignment:
        received, split = evidence.received.mean(dim=1), parity_split(state)
        assignment = self.match(state, self.scores(state, received, split), split, r)
        return replace(assignment, weight=received * state.size) if self.by_attention else assignment

    def scores(self, state: TokenState, received: Tensor, split: Split) -> Tensor:
        """[B, Na, Nb] in [0, 1]. received [B, M]: attention, in any unit."""
        of_similarity, of_attention, of_size = self.exponents
        alike = ((similarity(state.tokens, split) + 1) / 2).clamp(min=0)  # rounding takes -1 below
        willing = _inverse(received, state.size) ** of_attention * _inverse(state.size, state.size) ** of_size
        pairs = willing[:, split.sources, None] * willing[:, None, split.destinations]
        return alike**of_similarity * pairs


def _inverse(values: Tensor, size: Tensor) -> Tensor:
    """[B, M] in [0, 1]: 1 / value as a part of the image's largest, in which padding, of size 0, takes no
    part."""
    values = values.clamp(min=SMALLEST_WEIGHT)
    least = values.masked_fill(size == 0, math.inf).amin(dim=1, keepdim=True)
    return (least / values).clamp(max=1)
