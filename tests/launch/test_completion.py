"""The script of `dtem completion`, in the shell that it is for."""

import shutil
import subprocess

import pytest

from pipeline.config.shipped import runs
from pipeline.merging.policies import POLICIES

pytest.importorskip("shtab")


@pytest.fixture(scope="module")
def completes(tmp_path_factory):
    """Function from words, as bash parts them, to what bash offers for the last one."""
    from launch.completion.script import script

    folder = tmp_path_factory.mktemp("shell")
    (folder / "dtem.bash").write_text(script("bash"))
    (folder / "runs").mkdir()
    (folder / "mine.py").touch()
    ask = (
        'source ./dtem.bash; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _dtem_joined; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )

    def completed(*words: str) -> set[str]:
        done = subprocess.run(
            ["bash", "--norc", "-c", ask, "bash", "dtem", *words],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert not done.stderr
        return set(done.stdout.split())

    return completed


def test_commands_and_options(completes):
    assert completes("ev") == {"evaluate"}
    assert completes("shards", "m") == {"make", "merge"}
    assert completes("evaluate", "runs", "--checkp") == {"--checkpoint"}
    assert completes("list", "po") == {"policies"}


def test_policies_configs_files_and_runs(completes):
    assert completes("evaluate", "runs", "--policy", "") == set(POLICIES.names())
    assert {f"dtem::{name}" for name in runs()} | {"mine.py"} <= completes("train", "")
    assert completes("train", "dtem", "::", "debug") == {"debug_cpu.py"}, "bash parts words at colons"
    assert completes("train", "dtem", "::") == set(runs())
    assert completes("train", "mi") == {"mine.py"}
    assert completes("evaluate", "ru") == {"runs"}


def test_settings_and_their_words(completes):
    assert completes("train", "mine.py", "--set", "train.max") == {"train.max_steps=", "train.max_nonfinite="}
    assert completes("train", "mine.py", "--set", "merging.policy", "=", "tom") == {"tome"}
    assert completes("train", "mine.py", "--set", "engine.type", "=") == {"local", "deepspeed", "fsdp"}
    assert "objective.type=merge_cost" in completes("config", "show", "mine.py", "--set", "objective")


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells(shell, dtem, tmp_path):
    text = dtem("completion", shell)
    dtem("completion", shell, "--out", tmp_path / "new" / "script")
    assert (tmp_path / "new" / "script").read_text() == text.removesuffix("\n")
    assert all(name in text for name in POLICIES.names()) and "evaluate" in text
    if (program := shutil.which(shell)) is not None:
        subprocess.run([program, "-n", str(tmp_path / "new" / "script")], check=True, timeout=60)
