"""Faults that a user puts into a run on purpose, to rehearse on their own cluster: one file per kind, found
by this list."""

from pipeline.train.faults import data, disk, numbers, processes  # noqa: F401  (registration)
