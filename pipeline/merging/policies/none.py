"""No merging: the backbone as it is."""

from pipeline.merging.policies import POLICIES
from pipeline.merging.policy import MergePolicy


@POLICIES.register("none")
class NoMerging(MergePolicy):
    merges = False
