"""The processes of a run meet within a deadline, or say who missed whom, where, and the way out."""

import socket

import pytest
from deepspeed_launch import environment
from forks import Fork

from pipeline.engine import connect as module
from pipeline.engine.connect import connect
from pipeline.errors import ConnectError, is_users

LIMIT, GENEROUS = 1.5, 300.0


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


def test_a_rank_whose_agent_is_gone_does_not_wait_for_the_start(monkeypatch, free_port):
    """torchrun was killed while its ranks began: its store is there before them, or it is gone."""
    monkeypatch.setattr(module, "_AGENT", 1.0)
    place = dict(RANK=0, WORLD_SIZE=2, LOCAL_RANK=0, MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port)
    for name, value in (place | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ConnectError, match="rank 0 did not meet .* within 1 s"):
        connect(10_000.0)


def test_a_process_alone_connects_to_nobody(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    connect(LIMIT)


STOPS_HALF_WAY = """
import os, time
from pipeline.engine import connect as module
if os.environ["RANK"] == "1":
    module.connect_hosts = lambda limit: time.sleep(600)
module.connect(8.0)
"""


def test_a_rank_that_hangs_while_groups_are_made_is_missed_within_the_limit(free_port):
    place = dict(WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port))
    ranks = [Fork("-c", STOPS_HALF_WAY, env=environment() | place | {"RANK": rank}) for rank in "01"]
    code = ranks[0].wait(GENEROUS)
    ranks[1].kill()
    assert code == 1 and "ConnectError: rank 0 found the other processes" in ranks[0].err
