"""Objectives: what the loss of a batch is. One file each, found by this list."""

from pipeline.objectives import distill, merge_cost, supervised  # noqa: F401  (registration)
from pipeline.objectives.objective import OBJECTIVES as OBJECTIVES
from pipeline.objectives.objective import Objective as Objective
