"""One run that was really trained, for all commands that start from one."""

from pathlib import Path

import pytest
from tinyrun import tiny_plain

from launch import cli
from pipeline.config.load import from_plain
from pipeline.train.loop import train


@pytest.fixture(scope="session")
def trained(digits, tmp_path_factory) -> Path:
    """The folder of a run of 4 steps with averaged weights: policy dtem, reduction 2 of 16 patches, 3 blocks."""
    output = tmp_path_factory.mktemp("trained") / "run"
    return train(from_plain(tiny_plain(digits, output, train=dict(steps=4))))


@pytest.fixture
def dtem(capsys):
    """Runs a command line; what it printed. A failure shows what it said."""

    def call(*argv: object, code: int = 0) -> str:
        assert cli.main([str(part) for part in argv]) == code, capsys.readouterr().err
        said = capsys.readouterr()
        return said.out if code == 0 else said.err

    return call
