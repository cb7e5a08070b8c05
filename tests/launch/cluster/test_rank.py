"""A process that torch's elastic agent may start again keeps two rules: nothing after a user's mistake, and
the second start continues what the first has saved."""

import os

import pytest

from launch import train
from launch.cluster import rank
from pipeline.processes import PARENT


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts the rank as the agent does; returns its status, and the arguments that training saw, if it was
    called."""
    monkeypatch.setenv(rank.MARKS, str(tmp_path))
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv(PARENT, raising=False)

    def call(outcome, *resume):
        seen = []

        def main():
            assert (tmp_path / f"pid-{os.getpid()}").exists()
            seen.append(list(rank.sys.argv[1:]))
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr(train, "main", main)
        monkeypatch.setattr(rank.sys, "argv", ["rank", "--resume", *(resume or ("none",))])
        return rank.main(), seen[0] if seen else None

    return call


def test_a_start_after_a_crash_continues(start, tmp_path):
    with pytest.raises(ZeroDivisionError):
        start(ZeroDivisionError())
    assert not list(tmp_path.glob("pid-*"))
    assert start(0) == (0, ["--resume", "auto"])
    assert start(0, "overwrite") == (0, ["--resume", "auto"]), "what it overwrote is gone by then"
    assert start(0, "runs/x") == (0, ["--resume", "runs/x"])


def test_nothing_starts_after_a_users_mistake(start):
    assert start(2) == (2, ["--resume", "none"])
    assert start(0) == (2, None)


def test_each_rank_counts_its_own_starts(start, monkeypatch):
    start(1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert start(0) == (0, ["--resume", "none"])


def test_nothing_starts_after_a_request_to_stop(start, tmp_path):
    start(1)
    (tmp_path / rank.STOP).touch()
    assert start(1) == (0, None)
