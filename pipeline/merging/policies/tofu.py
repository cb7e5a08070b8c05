"""ToFu, Token Fusion (Kim et al., WACV 2024, arXiv 2312.01026): early blocks prune one token of a pair, late
ones merge it and keep the norm.

Pairs are ToMe's. Early blocks are far from linear, so a mean of two tokens is a token that they never saw:
there the source is dropped. In late blocks a mean is shorter than its members: there it is stretched to the
largest norm of them (MLERP).

Ours: the direction is that of the mean by size, as everywhere here, and the paper's of a plain mean; pairs
that share a destination make one group, whose largest norm counts.
"""

from dataclasses import replace

import torch

from pipeline.errors import ConfigError
from pipeline.merging.evidence import Evidence
from pipeline.merging.matching import match_by
from pipeline.merging.policy import POLICIES, MergePolicy
from pipeline.token_state import Assignment, TokenState


@POLICIES.register("tofu")
class ToFu(MergePolicy):
    """ToMe's pairs, of which early blocks drop the sources, and late ones keep the norm.

    until: the share of the blocks, from the first one, that prune, in [0, 1]. Raises ConfigError.
    """

    needs = frozenset({"keys"})
    conserves = False

    def __init__(self, *, until: float = 0.5):
        if not 0 <= until <= 1:
            raise ConfigError(f"tofu: until is {until}; give a share of the blocks, in [0, 1]")
        self.until = until
        # dropped patches must not attend for themselves
        self.requires = frozenset({"merged_attention"} if until else ())
        self.conserves_size, self.resizes = until == 0, until < 1

    def choose(self, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool) -> Assignment:
        merge = match_by(evidence.keys, state, r)
        if evidence.depth >= self.until:
            return replace(merge, keeps_norm=True)
        return replace(merge, part=torch.zeros_like(merge.source, dtype=state.size.dtype))
