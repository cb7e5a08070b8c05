"""The page docs/extending.md is true: its policy, taken from the page, keeps every law of merging and
unmerging."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAWS = [
    "tests/laws/test_merge_laws.py",
    "tests/laws/test_unmerge_laws.py",
    "tests/laws/test_backbone_laws.py",
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
    command = [sys.executable, "-m", "pytest", "-q", *options, *LAWS]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 50 and "failed" not in done.stdout
