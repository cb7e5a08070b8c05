"""docs/clusters.md shows what `--dry-run` prints, to the letter."""

import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from launch import cli
from launch.cluster.environment import PASSED, PREFIXES

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/clusters.md"
SHOWN = re.compile(r"^```\n\$ ((?:[^\n]*\\\n)*[^\n]*)\n(.*?)^```", re.M | re.S)
BLOCKS = SHOWN.findall(PAGE.read_text())


def printed(command: str, hostfile: Path, capture) -> str:
    """What a command prints, with the reader's folder and interpreter in place of those of here."""
    words = shlex.split(command.replace("\\\n", " "))[1:]
    hostfile.write_text("node1 slots=1\nnode2 slots=1\n")
    here = {name: value for name, value in os.environ.items() if name in PASSED or name.startswith(PREFIXES)}
    try:
        for name in here:
            del os.environ[name]
        assert cli.main([str(hostfile) if word == "hosts" else word for word in words]) == 0
    finally:
        os.environ |= here
    text = capture.readouterr().out
    return text.replace(sys.executable, "/env/bin/python").replace(os.getcwd(), "/shared/project")


@pytest.mark.parametrize(("command", "shown"), BLOCKS, ids=lambda text: text[:35])
def test_the_page_shows_what_a_dry_run_prints(command, shown, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda size: "0123456789abcdef")
    assert printed(command, tmp_path / "hosts", capsys) == shown


def test_the_page_shows_every_backend_that_differs():
    assert {re.findall("--backend (\\w+)", command)[0] for command, _ in BLOCKS} == {
        "deepspeed",
        "torchrun",
        "slurm",
        "mpi",
        "k8s",
    }
