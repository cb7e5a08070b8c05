"""The command line answers at once, says what a user did wrong in one message, and exits as agreed."""

import importlib
import re
import shlex
import subprocess
import sys

import pytest

from launch import cli
from pipeline.errors import CheckpointError, ConfigError, SampleError


@pytest.mark.parametrize("parser", cli.leaves(cli.build_parser()), ids=lambda parser: parser.prog)
def test_help_of_each_command_shows_an_example(parser):
    text = parser.epilog.partition("example")[2].replace("\\\n", " ")
    examples = re.findall(rf"(?:^|[:;]) *({parser.prog}(?: [^;#\n]*|$))", text, re.M)
    assert examples
    for example in examples:
        cli.build_parser().parse_args(shlex.split(example)[1:])


@pytest.mark.parametrize("parser", cli.leaves(cli.build_parser()), ids=lambda parser: parser.prog)
def test_lines_of_help_fit_the_terminal(parser, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    assert [line for line in parser.format_help().splitlines() if len(line) > 110] == []


def test_no_parser_waits_for_torch():
    code = "import sys; from launch.cli import build_parser; build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=600).returncode == 0


def test_what_reads_configs_and_errors_waits_for_no_torch():
    code = "import sys, pipeline.errors, pipeline.config.load; sys.exit('torch' in sys.modules)"
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


def test_the_command_alone_lists_the_commands(capsys):
    assert cli.main([]) == 2
    said = capsys.readouterr().err
    assert all(re.search(rf"^ +{command} +\w", said, re.M) for command in cli.COMMANDS)


@pytest.mark.parametrize("place", [["-v", "doctor"], ["doctor", "--verbose"]])
def test_verbose_shows_where_a_users_mistake_was_found(place, doctor_raises, capsys):
    doctor_raises(ConfigError("x is wrong; do y"))
    assert "Traceback" not in capsys.readouterr().err
    assert cli.main(place) == 2
    said = capsys.readouterr().err
    assert "in raises" in said or "in run" in said and said.endswith("dtem doctor: x is wrong; do y\n")


@pytest.mark.parametrize("words", [["old.py"], ["--config", "old.py"]])
def test_a_config_is_named_with_and_without_its_option(words):
    for command in ("train", "launch"):
        for argv in ([*words, "--set", "a.b=1"], ["--set", "a.b=1", *words]):
            args = cli.build_parser().parse_args([command, *argv])
            assert (args.config, args.cfg_options) == ("old.py", ["a.b=1"])


@pytest.mark.parametrize("words", [[], ["a.py", "--config", "b.py"], ["--config"]])
def test_exactly_one_config_is_named(words, capsys):
    with pytest.raises(SystemExit):
        cli.build_parser().parse_args(["train", *words])
    assert "config" in capsys.readouterr().err


def test_settings_are_taken_in_their_order():
    argv = ["train", "a.py", "--set", "a=1", "--cfg-options", "b=2", "c=3", "--set", "d=4"]
    assert cli.build_parser().parse_args(argv).cfg_options == ["a=1", "b=2", "c=3", "d=4"]
    assert cli.build_parser().parse_args(["train", "a.py"]).cfg_options == []


@pytest.mark.parametrize(
    ("text", "parts"), [("8", ["8"]), ("8, 0.9,(8,-1),[8,8,4]", ["8", "0.9", "(8,-1)", "[8,8,4]"])]
)
def test_a_comma_in_brackets_parts_no_reductions(text, parts):
    for command in ("sweep", "visualise"):
        args = cli.build_parser().parse_args([command, "runs/x", "--reduction", text])
        assert args.reductions == parts


OLD = [
    *(["evaluate", "runs/x", "--json", "a"], ["evaluate", "runs/x", "--tasks", "a"]),
    *(["export", "runs/x", "--out", "a", "--to", "a"], ["visualise", "runs/x", "--reductions", "1"]),
    *(["sweep", "runs/x", "--policies", "tome"], ["sweep", "runs/x", "--reductions", "1"]),
]


@pytest.mark.parametrize("argv", OLD, ids=" ".join)
def test_words_of_before_are_refused(argv, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(argv)
    assert done.value.code == 2 and "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["trian"], ["doctor", "--shrads"]])
def test_a_wrong_command_line_exits_with_2(argv, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(argv)
    assert done.value.code == 2
    assert "usage: dtem" in capsys.readouterr().err


def test_a_reader_that_has_gone_ends_a_command_without_a_traceback():
    code = (
        "import sys; sys.stdin.readline(); from launch.cli import main; sys.exit(main(['list', 'configs']))"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert command.stdout is not None
    command.stdout.close()
    command.stdout = None
    _, said = command.communicate("go\n", timeout=600)
    assert (command.returncode, said) == (141, "")
