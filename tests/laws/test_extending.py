"""The page docs/extending.md is true: its policy, taken from the page, keeps every law of merging and
unmerging."""

import json
import os
import re
import sys
from pathlib import Path

import forks
import pytest
from tinyrun import tiny_plain

from launch import cli
from launch.commands.arguments import import_modules
from pipeline.errors import ConfigError

ROOT = Path(__file__).parents[2]
LAWS = [
    "tests/laws/test_merge_laws.py",
    "tests/laws/test_unmerge_laws.py",
    "tests/laws/test_backbone_laws.py",
    "tests/laws/test_carrying_laws.py",
    "tests/laws/test_costs_of_merging.py",
]


def test_the_policy_of_the_page_keeps_every_law(tmp_path):
    """In a process of its own, in which the policy is registered before the laws are collected over all
    policies."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/extending.md").read_text(), flags=re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 22
    (tmp_path / "page_policy.py").write_text(code)
    paths = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    options = [
        "-p",
        "page_policy",
        "-p",
        "no:cacheprovider",
        "-k",
        "energy",
        "-o",
        "addopts=--import-mode=importlib",
    ]
    done = forks.run("-m", "pytest", "-q", *options, *LAWS, env=os.environ | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 50 and "failed" not in done.stdout


def test_a_run_of_a_policy_outside_of_the_package_is_trained_and_evaluated_by_import(digits, tmp_path):
    """In processes of their own, in whose folder the module is; what no one imports is unknown."""
    code = "from pipeline.merging.policies.tome import ToMe\nfrom pipeline.merging.policies import POLICIES\n"
    (tmp_path / "stranger.py").write_text(f"{code}POLICIES.register('stranger')(ToMe)\n")
    merging = {"policy": "stranger", "reduction": 1}
    short = {"train": {"mode": "backbone", "steps": 1}, "optim": {"warmup_steps": 0}}
    plain = tiny_plain(digits, tmp_path / "run", merging=merging, **short)
    (tmp_path / "run.json").write_text(json.dumps(plain))

    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

    def dtem(*words):
        code = f"import sys; from launch import cli; sys.path.remove(''); sys.exit(cli.main({list(words)}))"
        return forks.run("-c", code, env=os.environ | {"PYTHONPATH": paths}, cwd=tmp_path)

    named = ("--import", "stranger")
    assert (done := dtem("train", "--config", "run.json", *named)).returncode == 0, done.stderr
    assert (done := dtem("evaluate", "run", *named)).returncode == 0, done.stderr
    done = dtem("evaluate", "run")
    assert done.returncode == 2 and "unknown merge policy 'stranger'" in done.stderr
    assert "--import MODULE" in done.stderr


@pytest.mark.parametrize("name", ["no_such_module_anywhere", "stranger.py", ""])
def test_a_module_that_cannot_be_imported_is_told(name):
    path = list(sys.path)
    with pytest.raises(ConfigError, match=f"--import {name}: .*give the name of a module, without .py"):
        import_modules([name])
    assert sys.path == path
    assert cli.main(["evaluate", "nowhere", "--import", name]) == 2
