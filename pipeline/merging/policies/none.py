"""No merging: the backbone as it is."""

from torch import Tensor

from pipeline.merging.policies import POLICIES
from pipeline.token_state import TokenState


@POLICIES.register("none")
class NoMerging:
    metric_source = "none"
    merges = False
    relaxed = False
    exact_attention = False

    def metric_dim(self, dim: int, head_dim: int) -> int:
        return 0

    def merge(
        self, state: TokenState, metric: Tensor | None, r: int, *, training: bool = False
    ) -> TokenState:
        return state
