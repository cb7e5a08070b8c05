"""No merging: the backbone as it is."""

from pipeline.merging.policy import POLICIES, MergePolicy


@POLICIES.register("none")
class NoMerging(MergePolicy):
    """Keeps all tokens."""

    merges = False
