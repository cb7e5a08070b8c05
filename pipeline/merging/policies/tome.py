"""ToMe (Bolya et al., ICLR 2023): match by the attention keys, averaged over heads."""

from torch import Tensor

from pipeline.merging.matching import match_and_merge
from pipeline.merging.policies import POLICIES
from pipeline.token_state import TokenState


@POLICIES.register("tome")
class ToMe:
    metric_source = "keys"
    merges = True
    relaxed = False
    exact_attention = False

    def metric_dim(self, dim: int, head_dim: int) -> int:
        return 0

    def merge(
        self, state: TokenState, metric: Tensor | None, r: int, *, training: bool = False
    ) -> TokenState:
        assert metric is not None
        return match_and_merge(state, metric, r)
