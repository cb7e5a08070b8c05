"""A process that mpirun starts: `python -P -m launch.cluster.mpi_rank ADDRESS PORT ARGUMENTS OF dtem train`.
It says in the words of torch which rank it is, and trains."""

import os
import sys
from collections.abc import Mapping

from launch import train
from launch.cluster.hosts import LARGEST_PORT, check_name, check_number
from pipeline.errors import ConfigError
from pipeline.processes import soon_gone

FAMILIES = {
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "MPICH or Intel MPI": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    "Slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
}
"""Starter -> its variables for rank, number of ranks, and rank on this host."""
LOCAL_SIZES = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")


def place(address: str, port: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that torch and DeepSpeed read. Raises ConfigError where no starter set its own."""
    for names in FAMILIES.values():
        if all(name in environment for name in names):
            rank, size, local = (environment[name] for name in names)
            break
    else:
        raise ConfigError(f"not started by {', '.join(FAMILIES)}: RANK and WORLD_SIZE are not known")
    found = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local}
    if sizes := [environment[name] for name in LOCAL_SIZES if name in environment]:
        found["LOCAL_SIZE"] = sizes[0]
    check_number("port", port, LARGEST_PORT)
    return found | {"MASTER_ADDR": check_name(address), "MASTER_PORT": port}


def main() -> int:
    try:
        os.environ |= place(sys.argv[1], sys.argv[2], os.environ)
    except ConfigError as err:
        print(f"mpi_rank: {err}", file=sys.stderr)
        return 2
    del sys.argv[1:3]
    return train.main()


if __name__ == "__main__":
    sys.exit(soon_gone(main))
