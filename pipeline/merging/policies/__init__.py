"""Merge policies: one file each, found by this list."""

from pipeline.merging.policy import MergePolicy
from pipeline.registry import Registry

POLICIES: Registry[MergePolicy] = Registry("merge policy")

from pipeline.merging.policies import dtem, none, random, tome  # noqa: E402, F401  (registration)
