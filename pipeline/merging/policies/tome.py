"""ToMe (Bolya et al., ICLR 2023): matching by the attention keys, averaged over heads."""

from pipeline.merging.evidence import Evidence
from pipeline.merging.matching import match, parity_split, similarity
from pipeline.merging.policy import POLICIES, MergePolicy
from pipeline.token_state import Assignment, TokenState


@POLICIES.register("tome")
class ToMe(MergePolicy):
    """Merges the pairs with the most similar keys."""

    needs = frozenset({"keys"})

    def choose(self, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool) -> Assignment:
        split = parity_split(state)
        return match(state, similarity(evidence.keys, split), split, r)
