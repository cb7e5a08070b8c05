"""No merging: the backbone as it is."""

from pipeline.merging.policy import POLICIES, MergePolicy


@POLICIES.register("none")
class NoMerging(MergePolicy):
    merges = False
