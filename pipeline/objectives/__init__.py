"""Objectives, which compute the loss of a batch. Each has a file, which is imported here."""

from pipeline.objectives import consistency, distill, merge_cost, supervised  # noqa: F401  (registration)
from pipeline.objectives.objective import OBJECTIVES as OBJECTIVES
from pipeline.objectives.objective import Objective as Objective
