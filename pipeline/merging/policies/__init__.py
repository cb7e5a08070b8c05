"""Merge policies: one file each, found by this list."""

from pipeline.merging.policies import (  # noqa: F401  (registration)
    ailurus,
    algm,
    as_vit,
    atc,
    diffrate,
    dtem,
    evit,
    grid_average,
    gtp,
    mctf,
    mutual,
    none,
    pitome,
    random,
    rlt,
    stvit,
    tofu,
    tome,
    vid_tldr,
)
from pipeline.merging.policy import POLICIES as POLICIES
