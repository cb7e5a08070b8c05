"""What `benchmarks/gpu.sh` runs needs no more than a bare machine has: torch, timm, triton, safetensors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bare import missing, needed
from gpu_claims import GPU
from run_all import ROOT

THERE = [row for row in GPU if not {need.removeprefix("package ") for need in row.needs} & missing()]
BARE = str(ROOT / "tests/helpers/bare.py")


def bare(*words: str, out: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OUT": str(out), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, BARE, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600
    )


def test_what_torch_needs_is_there_and_what_this_project_needs_is_not():
    assert {"torch", "timm", "torchvision", "numpy", "safetensors", "sympy"} <= needed(("torch", "timm"))
    assert not {"torch", "numpy", "yaml", "PIL"} & missing()
    assert {"deepspeed", "mmengine", "psutil", "open_clip", "webdataset", "pytest"} <= missing()


@pytest.mark.slow
@pytest.mark.parametrize(
    "row", [row for row in GPU if row.script == "engine_overhead.py"], ids=lambda row: row.name
)
def test_a_run_trains_there(row, tmp_path):
    _, script, *words = row.command(Path("runs"), tmp_path / "gpu-2026-11-30.json", short=True, peers={})
    done = bare(script, *words, out=tmp_path)
    assert done.returncode == 0, done.stderr
    [entry] = json.loads((tmp_path / "gpu-2026-11-30.json").read_text())["entries"]
    [result] = entry["results"]
    assert result["ratio"]["median"] > 0 and result["floor"]["GMAC/s"] > 0 and result["floor"]["seconds"] > 0


def test_but_for_captions_every_row_runs_there():
    assert [row.script for row in GPU if row not in THERE] == ["generation.py"]


@pytest.mark.slow
@pytest.mark.parametrize("row", THERE, ids=lambda row: row.name)
def test_every_script_of_a_gpu_runs_there(row, tmp_path):
    _, script, *words = row.command(Path("runs"), tmp_path / "gpu-2026-11-30.json", short=True, peers={})
    done = bare(script, *words, out=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "gpu-2026-11-30.json").read_text())["entries"]
