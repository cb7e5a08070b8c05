"""The command line answers at once, says what a user did wrong in one message, and exits as agreed."""

import argparse
import importlib
import re
import shlex
import subprocess
import sys

import pytest

from launch import cli
from pipeline.errors import CheckpointError, ConfigError, SampleError


def leaves(parser):
    """The parsers that take no further command: dtem doctor, dtem shards verify, ..."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [leaf for action in nested for child in action.choices.values() for leaf in leaves(child)] or [
        parser
    ]


@pytest.mark.parametrize("parser", leaves(cli.build_parser()), ids=lambda parser: parser.prog)
def test_help_of_each_command_shows_an_example(parser):
    text = parser.epilog.partition("example")[2].replace("\\\n", " ")
    examples = re.findall(rf"(?:^|[:;]) *({parser.prog}(?: [^;#\n]*|$))", text, re.M)
    assert examples
    for example in examples:
        cli.build_parser().parse_args(shlex.split(example)[1:])


@pytest.mark.parametrize("parser", leaves(cli.build_parser()), ids=lambda parser: parser.prog)
def test_lines_of_help_fit_the_terminal(parser, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    assert [line for line in parser.format_help().splitlines() if len(line) > 110] == []


def test_no_parser_waits_for_torch():
    code = "import sys; from launch.cli import build_parser; build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=600).returncode == 0


@pytest.fixture
def doctor_raises(monkeypatch):
    def arrange(error):
        def run(args):
            raise error

        monkeypatch.setattr(importlib.import_module("launch.commands.doctor"), "run", run)
        return cli.main(["doctor"])

    return arrange


@pytest.mark.parametrize("kind", [ConfigError, SampleError, CheckpointError])
def test_a_users_mistake_is_one_message_and_exit_2(kind, doctor_raises, capsys):
    assert doctor_raises(kind("x is wrong; do y")) == 2
    said = capsys.readouterr()
    assert said.err == "dtem doctor: x is wrong; do y\n" and not said.out


def test_a_file_of_the_users_that_cannot_be_used_is_no_bug(doctor_raises, capsys):
    assert doctor_raises(FileExistsError(17, "File exists", "out")) == 2
    assert "out" in capsys.readouterr().err
    assert doctor_raises(OSError(28, "No space left on device")) == 2


def test_an_interrupt_exits_with_130(doctor_raises):
    assert doctor_raises(KeyboardInterrupt()) == 130


def test_our_own_bug_keeps_its_traceback(doctor_raises):
    with pytest.raises(ZeroDivisionError):
        doctor_raises(ZeroDivisionError())


@pytest.mark.parametrize("argv", [[], ["trian"], ["doctor", "--shrads"]])
def test_a_wrong_command_line_exits_with_2(argv, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(argv)
    assert done.value.code == 2
    assert "usage: dtem" in capsys.readouterr().err
