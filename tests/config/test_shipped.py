"""A config of the project has a name that holds wherever the package is installed."""

from pathlib import Path

import pytest

from pipeline.config.load import load_config
from pipeline.config.shipped import config_path
from pipeline.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_the_path_in_configs_and_parts_do_without_base(name):
    assert config_path(f"dtem::{name}") == CONFIGS / name
    assert config_path(Path(f"dtem::{name.removeprefix('_base_/')}")) == CONFIGS / name


@pytest.mark.parametrize("name", ["run.py", "/tmp/run.py", "configs/debug_cpu.py"])
def test_a_path_stays_a_path(name):
    assert config_path(name) == Path(name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dtem::debug_cpu", "did you mean 'debug_cpu.py'"),
        ("dtem::task/imagnet.py", "did you mean 'task/imagenet.py'"),
        ("dtem::../setup.cfg", "unknown config of the project"),
        (f"dtem::{CONFIGS}/debug_cpu.py", "unknown config of the project"),
        ("dtem::", "'dtem::' names no config; give one behind it, such as dtem::debug_cpu.py"),
    ],
)
def test_a_name_that_is_none_is_told_with_the_nearest(name, said):
    with pytest.raises(ConfigError, match=said):
        load_config(name)


def test_a_config_elsewhere_builds_on_those_of_the_project(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "_base_ = ['dtem::merging/dtem.py', 'dtem::engine/local_cpu.py']\n"
        "tasks = dict(_base_=['dtem::task/imagenet.py', 'dtem::digits_vit.py'], digits=dict(weight=3))\n"
        "backbone = dict(name='deit_tiny_patch16_224')\n"
        "train = dict(steps=1)\n"
        "output = 'runs/{{ fileBasenameNoExtension }}'\n"
    )
    config = load_config(path)
    assert config.tasks.keys() == {"imagenet", "digits"} and config.tasks["digits"].weight == 3
    assert config.merging.policy == "dtem" and config.engine.type == "local" and config.output == "runs/mine"


def test_a_base_that_is_none_is_told_too(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("_base_ = ['dtem::task/imagnet.py']\n")
    with pytest.raises(ConfigError, match="did you mean 'task/imagenet.py'"):
        load_config(path)


def test_mmengine_itself_is_left_as_it_was(tmp_path):
    from mmengine.config import Config

    before = Config._get_cfg_path
    load_config("dtem::debug_cpu.py")
    assert Config._get_cfg_path is before


def test_a_repeated_key_in_a_named_base_of_the_line_is_found(tmp_path):
    """What mmengine would lose is looked for behind names as well as behind paths."""
    from pipeline.config.python_files import _with_bases

    path = tmp_path / "mine.py"
    path.write_text("_base_ = ['dtem::debug_cpu.py']\n")
    files = [file for file, _ in _with_bases(path)]
    assert CONFIGS / "debug_cpu.py" in files and len(files) > 2
