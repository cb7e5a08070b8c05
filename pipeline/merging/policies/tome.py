"""ToMe (Bolya et al., ICLR 2023): matching by the attention keys, averaged over heads."""

from pipeline.merging.evidence import Evidence
from pipeline.merging.matching import match_by
from pipeline.merging.partitions import PARITY, check_partition
from pipeline.merging.policy import POLICIES, MergePolicy
from pipeline.token_state import Assignment, TokenState


@POLICIES.register("tome")
class ToMe(MergePolicy):
    """Merges the pairs with the most similar keys. partition: see `pipeline.merging.partitions`. Raises
    ConfigError."""

    needs = frozenset({"keys"})
    ranks = True

    def __init__(self, *, partition: str = PARITY):
        self.partition = check_partition("tome", partition)

    def choose(self, evidence: Evidence, state: TokenState, r: int, *, relaxed: bool) -> Assignment:
        return match_by(evidence.keys, state, r, self.partition)
