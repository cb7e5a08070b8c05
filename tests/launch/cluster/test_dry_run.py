"""What `--dry-run` prints for each backend is the golden text, and is read back by what will read it."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from agents import NASTY

from launch.cluster.backends.all import BACKENDS
from launch.cluster.hosts import Host
from launch.cluster.job import HERE, Job
from launch.commands.launch import BACKENDS as NAMES
from pipeline.errors import ConfigError

GOLDEN = Path(__file__).with_name("golden")
TWO = (Host("node-a", (0, 1), user="me"), Host("node-b", (0, 1), user="me"))
TRAIN = ("--config", "configs/debug_cpu.py", "--cfg-options", "output=/shared/my $run's", "--resume", "auto")
ENV = {"A": "it's $(x);\n`y`", "DS_ACCELERATOR": "cpu", "HF_TOKEN": "hf_never_printed"}
COMMON = dict(train=TRAIN, folder="/work/my project", env=ENV, python="/env/bin/python", restarts=2)
COMMON["run_id"] = "0123456789abcdef"
JOBS = {
    "local": Job(**COMMON, hosts=(Host(HERE, (0, 1)),)),
    "deepspeed": Job(**COMMON, hosts=TWO),
    "torchrun": Job(**COMMON, hosts=TWO),
    "slurm": Job(**COMMON, nodes=2, processes=2),
    "mpi": Job(**COMMON, hosts=TWO, master_port=1234),
    "k8s": Job(**COMMON, nodes=2, processes=2, image="registry/dtem:1", claims=(("runs", "/shared"),)),
}


def text(name: str, **changes) -> str:
    return BACKENDS.build(name).text(Job(**{**vars(JOBS[name]), **changes}))


def test_every_backend_has_a_golden_text():
    assert BACKENDS.names() == sorted(NAMES) == sorted(JOBS) == sorted(path.stem for path in GOLDEN.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_the_text_is_the_golden_one(name):
    assert text(name) == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_no_secret_is_printed(name):
    train = ("--cfg-options", "data=https://me:hf_never_printed@host", "--resume", "none")
    env = {"HF_TOKEN": "hf_never_printed", "HTTPS_PROXY": "http://me:hf_never_printed@proxy"}
    assert "hf_never_printed" not in text(name) + text(name, train=train, env=env)


@pytest.mark.parametrize("name", ["torchrun", "k8s"])
def test_two_launches_never_train_as_one(name):
    """torch's agents that meet at one place are one run if they have one id."""
    first, second = (re.findall(r"--rdzv-id=(\S+)", text(name, run_id=f"{i:016x}"))[0] for i in (1, 2))
    assert first != second and Job(train=(), folder="/").run_id != Job(train=(), folder="/").run_id


def works(name: str, train: tuple[str, ...]) -> list[dict]:
    """What the agents are sent, read back by a real shell."""
    commands = [line for line in text(name, train=train).splitlines() if line.startswith("{ printf")]
    sent = [line.replace("; cat; }", "; }").partition("; } |")[0] + "; }" for line in commands]
    return [json.loads(subprocess.run(["sh", "-c", part], capture_output=True).stdout) for part in sent]


@pytest.mark.parametrize("name", ["local", "deepspeed", "torchrun"])
def test_a_shell_reads_the_work_of_a_host_back(name):
    for number, work in enumerate(works(name, tuple(NASTY))):
        assert work["argv"][-len(NASTY) :] == NASTY and work["env"]["A"] == ENV["A"]
        assert work["folder"] == "/work/my project" and work["beats"] == (name != "local")
        if name == "deepspeed":
            assert work["processes"] == {
                f"rank {2 * number + local}": {"RANK": str(2 * number + local), "LOCAL_RANK": str(local)}
                for local in (0, 1)
            }
            assert {
                key: work["env"][key] for key in ("WORLD_SIZE", "LOCAL_SIZE", "CROSS_RANK", "MASTER_ADDR")
            } == {
                "WORLD_SIZE": "4",
                "LOCAL_SIZE": "2",
                "CROSS_RANK": str(number),
                "MASTER_ADDR": "node-a",
            }


STUBS = """
srun() { printf '%s\\0' "$@"; exit 0; }
exec() { "$@"; }
cd() { :; }
scontrol() { echo head; echo other; }
SLURM_JOB_NODELIST=x
SLURM_JOB_ID=12345
"""


def test_bash_reads_the_slurm_script_back():
    script = text("slurm", train=tuple(NASTY[:-1]))
    assert script.startswith("#!/bin/bash\n#SBATCH ")
    told = subprocess.run(["bash", "-c", STUBS + script + "\n"], capture_output=True, check=True)
    words = told.stdout.decode().split("\0")[:-1]
    assert words[-len(NASTY) + 1 :] == NASTY[:-1]
    assert {"--rdzv-endpoint=head:22345", "--rdzv-id=dtem-12345", "--max-restarts=2"} <= set(words)
    exports = subprocess.run(
        [
            "bash",
            "-c",
            "srun() { printf '%s' \"$A\"; exit 0; }\n" + STUBS.partition("\n")[2].partition("\n")[2] + script,
        ],
        capture_output=True,
        check=True,
    )
    assert exports.stdout.decode() == ENV["A"]


def test_a_shell_reads_the_mpi_command_back():
    words = shlex.split(text("mpi", train=tuple(NASTY)))
    assert words[-len(NASTY) :] == NASTY and "A=" + ENV["A"] in words
    assert words[words.index("--host") + 1] == "node-a:2,node-b:2"
    assert words[words.index("plm_rsh_args") + 1] == "-l me"


def expanded(text: str) -> str:
    """As Kubernetes reads a command, with no variable set: `$$` is `$`."""
    assert not re.search(r"(?<!\$)(\$\$)*\$\(", text), "it would be taken for a variable"
    return text.replace("$$", "$")


def test_yaml_reads_the_manifest_back():
    service, job = yaml.safe_load_all(text("k8s", train=tuple(NASTY[:-1])))
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    command = [expanded(word) for word in container["command"]]
    assert command[-len(NASTY) + 1 :] == NASTY[:-1]
    assert (
        f"--rdzv-endpoint={job['metadata']['name']}-0.{service['metadata']['name']}:{JOBS['k8s'].port}"
        in command
    )
    assert {"name": "A", "value": ENV["A"].replace("$", "$$")} in container["env"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    assert job["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]
    assert {volume["name"] for volume in pod["volumes"]} == {"shm", "runs"}
    assert "resources" not in container


def test_gpus_are_asked_for_where_they_are_used():
    assert "--gpus-per-node=2" in text("slurm", env={})
    (_, job) = yaml.safe_load_all(text("k8s", env={}))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 2}}


def test_some_slots_of_a_host_are_some_of_its_gpus():
    hosts = (Host("node-a", (0, 2)), Host("node-b", (0, 1)))
    first, second = [
        json.loads(shlex.split(line)[3].rstrip(";"))
        for line in text("deepspeed", hosts=hosts).splitlines()
        if line.startswith("{ printf")
    ]
    assert first["env"]["CUDA_VISIBLE_DEVICES"] == "0,2" and "CUDA_VISIBLE_DEVICES" not in second["env"]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("local", dict(hosts=TWO), "--backend deepspeed"),
        ("k8s", dict(image=None), "--image"),
        ("k8s", dict(hosts=TWO), "--nodes"),
        ("slurm", dict(image="x"), "--backend k8s"),
        ("torchrun", dict(hosts=(Host("a", (0,)), Host("b", (0, 1)))), "1 and 2 slots"),
        ("mpi", dict(hosts=(Host("a", (0,), user="x"), Host("b", (0,)))), "one ssh user"),
        ("mpi", dict(hosts=(Host("a", (2, 3)),)), "first GPUs"),
        ("slurm", dict(hosts=(Host("a", (1,)),)), "first GPUs"),
        ("mpi", dict(hosts=(Host("fd00::1", (0,)), Host("fd00::2", (0,)))), "IPv6"),
    ],
)
def test_what_a_backend_cannot_do_is_refused(name, changes, message):
    with pytest.raises(ConfigError, match=message):
        text(name, **changes)


@pytest.mark.parametrize(("name", "program"), [("slurm", "sbatch"), ("mpi", "mpirun"), ("k8s", "kubectl")])
def test_a_missing_program_is_named(name, program, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=f"'{program}' on PATH"):
        BACKENDS.build(name).run(JOBS[name])


@pytest.mark.parametrize(("name", "program"), [("slurm", "sbatch"), ("k8s", "kubectl")])
def test_a_scheduler_gets_the_text_with_the_values_of_secrets(name, program, tmp_path, monkeypatch):
    stub = tmp_path / program
    stub.write_text(f'#!/bin/sh\nexec cat > "{tmp_path}/got"\n')
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert BACKENDS.build(name).run(JOBS[name]) == 0
    secret = "HF_TOKEN=" if name == "slurm" else "HF_TOKEN\n          value: "
    hidden = secret + ("'***'")
    assert hidden in text(name)
    assert (tmp_path / "got").read_text() == text(name).replace(hidden, secret + ENV["HF_TOKEN"])
