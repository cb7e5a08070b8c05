"""Merge policies: one file each, found by this list."""

from pipeline.merging.policies import dtem, none, random, tome  # noqa: F401  (registration)
from pipeline.merging.policy import POLICIES as POLICIES
