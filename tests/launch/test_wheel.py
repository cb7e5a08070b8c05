"""The wheel, installed where no checkout is, holds the whole package. It trains and evaluates from a config
by name, in one process and under DeepSpeed's launcher."""

import os
import socket
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from pipeline.version import VERSION

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGES = ("dtem", "launch", "pipeline", "tasks")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
OFFLINE = ("--no-deps", "--no-index")


def said(*command: object, cwd: Path) -> str:
    """What a command prints that succeeds, where nothing points to a checkout."""
    places = [sysconfig.get_path("scripts"), os.environ["PATH"]]  # of ninja
    mine = {"PATH": os.pathsep.join(places), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    mine |= {"TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", f"{sys.prefix}/torch_extensions")}
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | mine
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built of the checkout's files, in a copy, as setuptools leaves a folder `build` behind."""
    folder = tmp_path_factory.mktemp("wheel")
    said(
        "git",
        "-c",
        f"safe.directory={ROOT}",
        "-C",
        ROOT,
        "checkout-index",
        "--all",
        f"--prefix={folder}/source/",
        cwd=folder,
    )
    said(
        *PIP, "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", folder, folder / "source", cwd=folder
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def place(wheel, digits, tmp_path_factory) -> Path:
    """A folder with an environment `env`: the wheel, and what this Python's environment has; and with shards
    `digits`."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "env", symlinks=True)
    python = folder / "env/bin/python"
    (site,) = (folder / "env/lib").glob("python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    said(*PIP, "--python", python, "install", *OFFLINE, "--force-reinstall", wheel, cwd=folder)
    (folder / "digits").symlink_to(digits)
    (folder / "mine.py").write_text(
        "_base_ = ['dtem::digits_vit.py']\n"
        "tasks = dict(digits=dict(data=dict(train='digits', val='digits', workers=0, batch_size=8)))\n"
        "train = dict(steps=2)\n"
        "optim = dict(warmup_steps=0)\n"
        "output = 'run'\n"
    )
    return folder


def test_the_wheel_holds_the_package_its_configs_and_the_page_of_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.endswith(".py")}
        (metadata,) = [name for name in archive.namelist() if name.endswith("dist-info/METADATA")]
        page = archive.read(metadata).decode()
    code = {path.relative_to(ROOT).as_posix() for top in PACKAGES for path in (ROOT / top).rglob("*.py")}
    configs = {f"dtem/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.py")}
    assert held == code | configs
    assert (ROOT / "README.md").read_text() in page


@pytest.mark.parametrize("launched", (False, True), ids=("one process", "two under deepspeed"))
def test_the_wheel_trains_and_evaluates_from_a_config_by_name(place, launched):
    python, run = place / "env/bin/python", f"run{int(launched)}"
    settings = ("--config", "mine.py", "--cfg-options", f"output={run}")
    if launched:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launcher = ("-c", "from deepspeed.launcher.runner import main; main()", "--num_accelerators", 2)
        command = (*launcher, "--master_port", port, "--module", "dtem.train")
        said(python, *command, *settings, "engine.type=deepspeed", "engine.precision=fp32", cwd=place)
    else:
        said(place / "env/bin/dtem", "train", *settings, "engine.type=local", cwd=place)
    answer = said(place / "env/bin/dtem", "evaluate", run, cwd=place)
    assert "top1" in answer and "samples 25" in answer


def test_nothing_of_the_checkout_takes_part(place):
    program = (
        "import dtem, launch, pipeline, tasks; print(*(m.__file__ for m in (dtem, launch, pipeline, tasks)))"
    )
    for file in said(place / "env/bin/python", "-c", program, cwd=place).split():
        assert Path(file).is_relative_to(place), file
    assert said(place / "env/bin/dtem", "--version", cwd=place) == f"dtem {VERSION}\n"
