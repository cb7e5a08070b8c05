"""The ranks of another host get what the allow-list or `--env` names, and nothing else."""

import pytest

from launch.cluster.environment import environment, variables
from pipeline.errors import ConfigError

HERE = {
    "PATH": "/bin",
    "NCCL_DEBUG": "INFO",
    "AWS_SECRET_ACCESS_KEY": "s",
    "DS_ACCELERATOR": "cpu",
    "HF_TOKEN": "t",
}


def test_only_the_allow_list_and_what_is_named_crosses():
    assert environment([], HERE) == {"DS_ACCELERATOR": "cpu", "NCCL_DEBUG": "INFO"}
    assert environment(["HF_TOKEN", "A=x=y"], HERE) == {
        "A": "x=y",
        "DS_ACCELERATOR": "cpu",
        "HF_TOKEN": "t",
        "NCCL_DEBUG": "INFO",
    }
    assert variables(["A="], HERE) == {"A": ""}


def test_a_file_of_the_working_folder_adds_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".deepspeed_env").write_text("EVIL=$(touch X)\n")
    assert "EVIL" not in environment([], HERE)


@pytest.mark.parametrize(
    "given",
    [
        "",
        "=x",
        "A B=x",
        "1A=x",
        "A;B=x",
        "Ä=x",
        "NOT_SET",
        "RANK=0",
        "A=\0",
        "DTEM_PARENT=4",
        "TORCHELASTIC_X=1",
    ],
)
def test_what_is_no_variable_is_refused(given):
    with pytest.raises(ConfigError, match="--env"):
        environment([given], HERE)


def test_a_variable_is_given_once():
    with pytest.raises(ConfigError, match="twice"):
        environment(["A=1", "A=2"], HERE)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "DTEM_PARENT", "DTEM_MARKS", "TORCHELASTIC_RUN_ID"])
def test_what_the_launcher_sets_is_not_given(name):
    with pytest.raises(ConfigError, match="the launcher sets it"):
        environment([f"{name}=4"], HERE)
