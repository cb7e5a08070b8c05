"""The scripts run, here on one image, and their records say how they were made."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def record_of(tmp_path, script, *arguments):
    path = tmp_path / "record.json"
    command = [sys.executable, f"benchmarks/{script}", "--model", "deit_tiny_patch16_224", "--batch", "1", "--repeats", "2"]
    done = subprocess.run([*command, *arguments, "--record", str(path)], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("script", "arguments", "names"),
    [
        ("inference_cpu.py", ["--threads", "1"], ["ours_dtem vs timm, 1 threads", "ours_tome vs timm, 1 threads"]),
        ("gpu_speed.py", ["--what", "inference", "--device", "cpu", "--r", "8"], ["dtem r=8"]),
        ("gpu_speed.py", ["--what", "training", "--device", "cpu", "--r", "0", "16"], ["dtem r=0", "dtem r=16"]),
        (
            "segmentation_cpu.py",
            ["--size", "96", "--threads", "1", "--within", "0.5"],
            [
                f"{what}; merged in 50% of the blocks, 1 threads"
                for what in (
                    "images/s, unmerged by copy, over r = 0",
                    "images/s, unmerged by residual, over r = 0",
                    "seconds, unmerged by copy, over not unmerged",
                    "seconds, unmerged by residual, over not unmerged",
                )
            ],
        ),
    ],
    ids=["inference on the CPU", "inference on a device", "training on a device", "encoder of segmentation on the CPU"],
)
def test_a_script_writes_its_record(tmp_path, script, arguments, names):
    record = record_of(tmp_path, script, *arguments)
    assert set(record) == {"claim", "command", "commit", "date", "hardware", "versions", "digests", "seeds", "results"}
    assert [result["name"] for result in record["results"]] == names
    for result in record["results"]:
        assert set(result["ratio"]) == {"median", "min", "max", "n"} and result["ratio"]["n"] == 2
        assert result["ratio"]["min"] <= result["ratio"]["median"] <= result["ratio"]["max"]
