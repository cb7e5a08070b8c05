"""The README is true: its links lead somewhere, its tests exist, its commands parse, its Python runs, its
config loads."""

import re
import shlex
from pathlib import Path

import pytest

from launch.cli import build_parser
from pipeline.config.load import load_config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)
COMMANDS = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)]+)\)", README))))
def test_a_link_leads_somewhere(target):
    assert (ROOT / target).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(tests/[^`]+)`", README))))
def test_a_guarantee_has_its_test(name):
    path, _, function = name.partition("::")
    assert f"def {function}" in (ROOT / path).read_text()


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_parses_and_its_config_is_there(line):
    words = shlex.split(line, comments=True)
    if words[0] == "deepspeed":
        words = ["dtem", "train", *words[words.index("launch/train.py") + 1 :]]
    args = build_parser().parse_args(words[1:])
    assert words[0] == "dtem" and (ROOT / getattr(args, "config", "README.md")).exists()


@pytest.mark.parametrize("target", re.findall(r"^    make (\w+)", README, re.M))
def test_a_make_target_is_there(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


def test_the_python_runs():
    names: dict = {}
    (code,) = [text for kind, text in BLOCKS if kind == "python" and text.startswith("import torch")]
    exec(compile(code, "README.md", "exec"), names)
    assert names["out"].final.tokens.shape == (2, 11, 384) and names["grid"].shape == (2, 384, 14, 14)


def test_the_config_loads(tmp_path):
    (code,) = [text for kind, text in BLOCKS if kind == "python" and text.startswith("_base_")]
    path = tmp_path / "mine.py"
    path.write_text(code.replace('"_base_/', f'"{ROOT}/configs/_base_/'))
    config = load_config(path)
    assert config.merging.policy == "dtem" and config.merging.reduction == 13
