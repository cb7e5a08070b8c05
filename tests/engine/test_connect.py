"""The processes of a run meet within a deadline, or say who missed whom, where, and the way out."""

import socket

import pytest

from pipeline.engine.connect import connect
from pipeline.errors import ConnectError, is_users

LIMIT = 1.5


@pytest.fixture
def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize(
    ("rank", "address"),
    [(0, "no.such.host.invalid"), (1, "no.such.host.invalid"), (0, "127.0.0.1"), (1, "127.0.0.1")],
)
def test_a_place_where_the_others_are_not_is_told_within_the_limit(monkeypatch, free_port, rank, address):
    """Rank 0 waits for the other at 127.0.0.1, and nobody opens a place there for rank 1."""
    place = dict(RANK=rank, WORLD_SIZE=2, LOCAL_RANK=0, MASTER_ADDR=address, MASTER_PORT=free_port)
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ConnectError) as raised:
        connect(LIMIT)
    text = str(raised.value)
    assert text.startswith(
        f"rank {rank} did not meet the other 1 processes at {address}:{free_port} within 2 s"
    )
    assert "MASTER_ADDR" in text and "engine.start_timeout" in text and "\n" not in text
    assert is_users(raised.value)


def test_a_process_alone_connects_to_nobody(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    connect(LIMIT)
