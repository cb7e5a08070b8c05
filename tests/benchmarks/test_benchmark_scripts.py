"""The scripts run, here on one image, and their records say how they were made."""

import json

import forks
import pytest
from digits_multitask import CONFIG, METRICS, _result
from multitask_step import step


def record_of(tmp_path, script, *arguments):
    path = tmp_path / "record.json"
    tiny = ["--model", "deit_tiny_patch16_224", "--batches", "1", "--repeats", "2", "--threads", "1"]
    done = forks.run(f"benchmarks/{script}", *tiny, *arguments, "--record", path)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


ENCODERS = ["--size", "96", "--within", "0.5"]


@pytest.mark.parametrize(
    ("script", "arguments", "names"),
    [
        (
            "inference.py",
            ["--r", "0,8", "--policies", "dtem"],
            [f"ours_dtem vs timm, batch 1, r = {r}, fp32, 1 threads" for r in (0, 8)],
        ),
        pytest.param(
            "unmerge.py",
            ENCODERS,
            [
                f"{what}; merged in 50% of the blocks, batch 1, fp32, 1 threads"
                for what in (
                    "seconds, unmerged by copy, over not unmerged",
                    "seconds, unmerged by residual, over not unmerged",
                    "seconds of unmerging by copy, alone, over one gather",
                    "seconds of unmerging by residual, alone, over one gather",
                )
            ],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "merge_share.py",
            [],
            [
                f"{policy}, batch 1, fp32, 1 threads: seconds of the merges over the blocks"
                for policy in ("dtem", "tome")
            ],
            marks=pytest.mark.slow,
        ),
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
        ratio = result["ratio"]
        assert set(ratio) == {"median", "quartiles", "min", "max", "n"} and ratio["n"] >= 2
        low, high = ratio["quartiles"]
        assert ratio["min"] <= low <= ratio["median"] <= high <= ratio["max"]
        assert result["floor"]["seconds"] > 0 and set(result["peak_mib"]) == {"ours", "peer"}


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
