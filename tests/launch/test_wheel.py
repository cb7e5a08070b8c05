"""The wheel, installed where no checkout is, holds the whole package. It trains and evaluates from a config
by name, in one process and under DeepSpeed's launcher."""

import socket
import zipfile
from pathlib import Path

import pytest
from wheelkit import ROOT, build_wheel, environment_with, said

from pipeline.version import VERSION

pytestmark = pytest.mark.slow

PACKAGES = ("dtem", "launch", "pipeline", "tasks")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def place(wheel, digits, tmp_path_factory) -> Path:
    """A folder with an environment `env` that has the wheel, and with shards `digits`."""
    folder = tmp_path_factory.mktemp("elsewhere")
    environment_with(wheel, folder)
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
