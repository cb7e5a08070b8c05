"""Imports every backend, which fills the registry."""

from launch.cluster.backends import deepspeed, k8s, local, mpi, slurm, torchrun
from launch.cluster.backends.backend import BACKENDS

__all__ = ["BACKENDS", "deepspeed", "k8s", "local", "mpi", "slurm", "torchrun"]
