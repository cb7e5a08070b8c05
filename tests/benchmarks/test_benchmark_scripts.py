"""The scripts run, here on one image, and their records say how they were made."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from digits_multitask import CONFIG, METRICS, _result
from multitask_step_cpu import step

ROOT = Path(__file__).resolve().parent.parent.parent


def record_of(tmp_path, script, *arguments):
    path = tmp_path / "record.json"
    command = [
        sys.executable,
        f"benchmarks/{script}",
        "--model",
        "deit_tiny_patch16_224",
        "--batch",
        "1",
        "--repeats",
        "2",
    ]
    done = subprocess.run(
        [*command, *arguments, "--record", str(path)], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("script", "arguments", "names"),
    [
        (
            "inference_cpu.py",
            ["--threads", "1"],
            ["ours_dtem vs timm, 1 threads", "ours_tome vs timm, 1 threads"],
        ),
        ("gpu_speed.py", ["--what", "inference", "--device", "cpu", "--r", "8"], ["dtem r=8"]),
        (
            "gpu_speed.py",
            ["--what", "training", "--device", "cpu", "--r", "0", "16"],
            ["dtem r=0", "dtem r=16"],
        ),
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
    ids=[
        "inference on the CPU",
        "inference on a device",
        "training on a device",
        "encoder of segmentation on the CPU",
    ],
)
def test_a_script_writes_its_record(tmp_path, script, arguments, names):
    record = record_of(tmp_path, script, *arguments)
    assert set(record) == {
        "claim",
        "command",
        "commit",
        "date",
        "hardware",
        "versions",
        "digests",
        "seeds",
        "results",
    }
    assert [result["name"] for result in record["results"]] == names
    for result in record["results"]:
        assert set(result["ratio"]) == {"median", "min", "max", "n"} and result["ratio"]["n"] == 2
        assert result["ratio"]["min"] <= result["ratio"]["median"] <= result["ratio"]["max"]


def test_the_step_that_is_timed_is_the_training_loops(digits, tmp_path):
    small = {"train": digits, "val": digits, "batch_size": 4, "workers": 0}
    options = [f"tasks.{task}.data.{name}={value}" for task in METRICS for name, value in small.items()]
    one = step(CONFIG, [*options, f"output={tmp_path}"])
    norms = [float(one()) for _ in range(2)]
    assert all(0 < norm < float("inf") for norm in norms) and norms[0] != norms[1]


def test_a_task_that_scores_nothing_alone_has_no_ratio(tmp_path):
    for run, score in (("together_seed0", 0.5), ("digits_seed0", 0.0)):
        (tmp_path / run).mkdir()
        (tmp_path / run / "metrics.jsonl").write_text(
            json.dumps({"step": 4, "val/digits/top1": score}) + "\n"
        )
    result = _result("digits", "top1", tmp_path, [0])
    assert "ratio" not in result and result["scores"] == {"together": [50.0], "alone": [0.0]}
