"""Objectives, which compute the loss of a batch. Each has a file, which is imported here."""

from pipeline.objectives import (  # noqa: F401  (registration)
    budget,
    consistency,
    distill,
    imix,
    merge_cost,
    supervised,
)
from pipeline.objectives.objective import OBJECTIVES as OBJECTIVES
from pipeline.objectives.objective import Objective as Objective
