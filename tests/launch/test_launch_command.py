"""`dtem launch`: the command line becomes a job, and what is wrong is one message before anything starts."""

import os

import pytest
import yaml

from launch import cli
from launch.commands.launch import build_job
from pipeline.config.load import load_config

CONFIG = ("--config", "configs/debug_cpu.py")


@pytest.fixture
def hostfile(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("node-a slots=2\nme@node-b slots=2 port=7\n")
    return str(path)


def job_of(*words: str):
    return build_job(cli.build_parser().parse_args(["launch", *words, *CONFIG]))


def test_without_a_hostfile_it_is_this_machine():
    job = job_of("--nproc", "3", "--env", "A=b c")
    assert [(host.name, host.slots) for host in job.hosts] == [("localhost", (0, 1, 2))]
    assert not job.over_a_network and job.env == {"A": "b c"} and job.folder == os.getcwd()


def test_a_hostfile_gives_hosts_and_the_environment_is_an_allow_list(hostfile, monkeypatch):
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("SOMETHING_ELSE", "x")
    words = ("--backend", "deepspeed", "--hostfile", hostfile, "--ssh-port", "22", "--ssh-user", "you")
    job = job_of(*words, "--exclude", "node-a:0")
    assert [(host.name, host.slots, host.user, host.port) for host in job.hosts] == [
        ("node-a", (1,), "you", 22),
        ("node-b", (0, 1), "me", 7),
    ]
    assert job.over_a_network and job.env["NCCL_DEBUG"] == "INFO" and "SOMETHING_ELSE" not in job.env
    assert job.output == load_config("configs/debug_cpu.py").output


def test_the_arguments_of_training_are_those_of_dtem_train():
    words = ["--cfg-options", "optim.lr=1e-3", "output=a b", "--import", "json", "--resume", "none"]
    job = job_of("--nproc", "1", *words)
    train = cli.build_parser().parse_args(["train", *job.train])
    assert train.cfg_options == ["optim.lr=1e-3", "output=a b"]
    assert (train.modules, train.resume, train.config) == (["json"], "none", CONFIG[1])


def test_a_dry_run_prints_and_starts_nothing(capsys):
    words = [
        "launch",
        "--backend",
        "k8s",
        "--nodes",
        "3",
        "--nproc",
        "8",
        "--image",
        "x",
        "--dry-run",
        *CONFIG,
    ]
    assert cli.main(words) == 0
    _, job = yaml.safe_load_all(capsys.readouterr().out)
    assert job["spec"]["completions"] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backend", "deepspeed", "--hostfile", "/nowhere/hosts"], "hostfile /nowhere/hosts"),
        (["--include", "node-a"], "give --hostfile"),
        (["--nodes", "2"], "--nodes is for"),
        (["--backend", "slurm"], "needs --nproc"),
        (["--nproc", "1", "--env", "RANK=1"], "--env RANK"),
        (["--nproc", "1", "--master-addr", "a;b"], "no name of a host"),
        (["--nproc", "1", "--ssh-user", "a;b"], "no name of a user"),
        (["--nproc", "1", "--ssh-port", "$(x)"], "give a number"),
        (["--nproc", "1", "--claim", "data"], "--claim data"),
        (["--nproc", "1", "--cfg-options", "optim.lrr=1"], "did you mean 'lr'"),
    ],
)
def test_a_mistake_is_one_message_and_exit_2(words, message, capsys):
    if "--ssh-port" in words or "--ssh-user" in words:
        words = [*words, "--hostfile", "/nowhere/hosts"]
    assert cli.main(["launch", *CONFIG, *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--nproc", "0"], ["--nproc", "x"], ["--restarts", "-1"], ["--backend", "x"]]
)
def test_a_wrong_number_is_the_parsers(words):
    with pytest.raises(SystemExit) as done:
        cli.main(["launch", *CONFIG, *words])
    assert done.value.code == 2
