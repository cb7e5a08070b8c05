"""A process of mpirun says in torch's words which rank it is."""

import pytest

from launch.cluster.mpi_rank import place
from pipeline.errors import ConfigError

OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
MPICH = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


@pytest.mark.parametrize("given", [OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, MPICH])
def test_the_starters_variables_become_torchs(given):
    assert place("node-a", "1234", given) == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_SIZE": "2",
        "MASTER_ADDR": "node-a",
        "MASTER_PORT": "1234",
    }


@pytest.mark.parametrize(
    ("address", "port", "given"), [("a", "1", {}), ("-x", "1", MPICH), ("a", "x", MPICH)]
)
def test_what_says_no_rank_is_refused(address, port, given):
    with pytest.raises(ConfigError):
        place(address, port, given)
