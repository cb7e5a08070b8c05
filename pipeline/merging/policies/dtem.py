"""DTEM (Lee & Hong, NeurIPS 2024): matching by an embedding that is learned for merging alone.

Inference is ToMe's hard merge with the learned metric. Training relaxes it.
"""

import math
from functools import partial

from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.merging.evidence import Evidence
from pipeline.merging.matching import Split, match_by, rank, similarity, without_padding
from pipeline.merging.partitions import OF_THE_GRID, PARITY, check_partition, in_partition
from pipeline.merging.policy import POLICIES, MergePolicy
from pipeline.merging.soft import give_shares, relaxed_top_r, straight_through
from pipeline.token_state import Assignment, TokenState

STARTS = ("random", "keys")


@POLICIES.register("dtem")
class DTEM(MergePolicy):
    """Merges the most similar pairs by a learned embedding.

    split: `parity` (training partitions tokens as inference does) or `reference` (as the authors' release
    does in training). relaxation: `soft` (the paper's) or `straight_through` (the forward pass is the hard
    merge, the gradient that of the soft one); None: `soft` for split `reference`, else `straight_through`.
    The defaults measured best (docs/log.md). candidates (k2), tau1, tau2: see `relaxed_top_r`. embed_dim:
    width of the embedding; None: that of a head, and twice that from 1024 channels on where it is drawn.
    init: how the embedding starts: `random`, as it is drawn, or `keys`, at the mean over heads of the keys,
    by which the untrained model merges as ToMe. partition: see `pipeline.merging.partitions`. Raises
    ConfigError.
    """

    needs = frozenset({"embedding"})
    supports_relaxed = True
    ranks = True

    def __init__(
        self,
        *,
        split: str = "parity",
        relaxation: str | None = None,
        candidates: int = 3,
        tau1: float = 0.1,
        tau2: float = 0.1,
        embed_dim: int | None = None,
        init: str = "random",
        partition: str = PARITY,
    ):
        if split not in ("parity", "reference"):
            raise ConfigError(f"dtem: split is '{split}'; give 'parity' or 'reference'")
        relaxation = relaxation or ("soft" if split == "reference" else "straight_through")
        if relaxation not in ("soft", "straight_through"):
            raise ConfigError(f"dtem: relaxation is '{relaxation}'; give 'soft' or 'straight_through'")
        if split == "reference" and relaxation == "straight_through":
            raise ConfigError(
                "dtem: split 'reference' orders tokens by soft sizes, so it goes with relaxation 'soft' only"
            )
        if split == "reference" and partition not in OF_THE_GRID:
            raise ConfigError(
                "dtem: split 'reference' takes the first patch for a source, which partition "
                f"'{partition}' makes a destination; give split='parity', or another partition"
            )
        if not (0 < tau1 < math.inf and 0 < tau2 < math.inf):
            raise ConfigError(f"dtem: tau1 {tau1} and tau2 {tau2} must be numbers above 0")
        if init not in STARTS:
            raise ConfigError(f"dtem: init is '{init}'; give one of {', '.join(STARTS)}")
        for name, count in {
            "candidates": candidates,
            "embed_dim": 1 if embed_dim is None else embed_dim,
        }.items():
            if not isinstance(count, int) or count < 1:
                raise ConfigError(f"dtem: {name} is {count!r}; give a whole number above 0")
        self.split = Split.of_release if split == "reference" else Split.by_parity
        self.follows_inference = split == "parity"
        self.exact_attention = split == "reference"
        self.straight_through = relaxation == "straight_through"
        self.candidates, self.tau1, self.tau2, self.embed_dim = candidates, tau1, tau2, embed_dim
        self.starts_at_keys = init == "keys"
        self.partition = check_partition("dtem", partition)

    def embedding_dim(self, dim: int, head_dim: int) -> int:
        wide = dim >= 1024 and not self.starts_at_keys
        return self.embed_dim or (2 * head_dim if wide else head_dim)

    def choose(self, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool) -> Assignment:
        if not relaxed:
            return match_by(evidence.embedding, state, r, self.partition)
        return in_partition(self.partition, evidence.embedding, state, partial(self._relaxed, r=r))

    def _relaxed(self, metric: Tensor | None, state: TokenState, r: int) -> Assignment:
        assert metric is not None
        split = self.split(state.num_active, state.num_prefix)
        scores = without_padding(state, similarity(metric, split), split)
        candidates = relaxed_top_r(
            scores, r, candidates=self.candidates, tau1=self.tau1, tau2=self.tau2, quota=state.quota
        )
        if not self.follows_inference:
            return give_shares(state, candidates, split, r)
        ranked = rank(state, candidates.score[..., 0].detach(), split)
        if self.straight_through:
            candidates = straight_through(candidates, ranked, r, state.quota)
        return give_shares(state, candidates, split, r, ranked)
