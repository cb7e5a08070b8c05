"""Merge policies: one file each, found by this list."""

from pipeline.merging.policies import (  # noqa: F401  (registration)
    dtem,
    evit,
    gtp,
    none,
    random,
    tome,
    vid_tldr,
)
from pipeline.merging.policy import POLICIES as POLICIES
