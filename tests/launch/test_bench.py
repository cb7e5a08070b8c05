"""`dtem bench`: what is timed is the inference itself, merged and unmerged, and the figures follow from the
times."""

import json

import pytest
import torch

from launch.bench.entries import MERGED, UNMERGED, of_run
from launch.bench.latency import Latency, speed_ups
from launch.measure.compute import first_batch
from launch.saved.run import read_run
from pipeline.version import VERSION

CPU = torch.device("cpu")


def test_the_figures_follow_from_the_times():
    whole = Latency(4, UNMERGED, "none", [20.0, 40.0, 30.0])
    part = Latency(4, MERGED, "none", [10.0, 10.0, 30.0])
    assert (whole.at(0.5), whole.at(1.0), part.at(0.5)) == (30.0, 40.0, 10.0)
    assert part.images_per_s == 400 and speed_ups(part, whole) == [2.0, 4.0, 1.0]


def test_a_run_is_timed_at_its_own_inference(trained):
    saved = read_run(trained)
    subject = of_run(saved, CPU)
    assert subject.schedule == (2, 2, 2) and subject.size == (32, 32) and subject.policy == "dtem"
    images = first_batch("digits", saved.config.tasks["digits"].data).to("cpu").images
    with torch.no_grad():
        plain, merged = (subject.infer(which, images, "none")() for which in (UNMERGED, MERGED))
    assert isinstance(plain, torch.Tensor) and isinstance(merged, torch.Tensor)
    assert plain.shape == merged.shape == (10, 10) and not torch.equal(plain, merged)


def test_each_task_is_timed(three_tasks, dtem, tmp_path):
    run = three_tasks("shared")
    for task in ("captions", "masks"):
        argv = ("bench", run, "--task", task, "--rounds", 2, "--batch-sizes", "1,3", "--device", "cpu")
        said = dtem(*argv, "--out", tmp_path / f"{task}.json")
        facts = json.loads((tmp_path / f"{task}.json").read_text())
        found = facts["latencies"]
        assert [(own["batch"], own["which"]) for own in found] == [
            (size, which) for size in (1, 3) for which in (UNMERGED, MERGED)
        ]
        assert all(len(own["ms"]) == 2 and own["p95_ms"] >= own["p50_ms"] > 0 for own in found)
        assert facts["dtem"].startswith(VERSION) and facts["versions"]["torch"] == torch.__version__
        assert facts["device"] == "CPU" and "threads" in said and "| merged" in said
    assert "give --task, one of" in dtem("bench", run, code=2)


def test_a_published_model_is_timed_beside_the_librarys_own(dtem, tmp_path):
    named = ("timm:test_vit", "--no-pretrained", "--img-size", 64, "--device", "cpu", "--rounds", 2)
    dtem("bench", *named, "--policy", "tome", "--reduction", 2, "--out", tmp_path / "out.json")
    facts = json.loads((tmp_path / "out.json").read_text())
    assert (
        set(facts["schedules"][MERGED]) == {2} and facts["task"] == "forward" and len(facts["latencies"]) == 4
    )
    assert "nothing merges" in dtem("bench", *named, code=2)
    assert "goes with a run" in dtem("bench", *named, "--task", "x", code=2)


@pytest.mark.slow
def test_a_compiled_model_gives_what_the_plain_one_gives(trained):
    torch.compiler.reset()
    subject = of_run(read_run(trained), CPU)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for which in (UNMERGED, MERGED):
            plain, compiled = (subject.infer(which, images, way)() for way in ("none", "model"))
            torch.testing.assert_close(plain, compiled, rtol=1e-3, atol=1e-4)


def test_wrong_numbers_are_refused(trained, dtem):
    assert "--rounds is 0; give 1 or more" in dtem("bench", trained, "--rounds", 0, code=2)
    assert "--batch-sizes holds 0" in dtem("bench", trained, "--batch-sizes", "0,1", code=2)
    assert "goes with a published model" in dtem("bench", trained, "--adapter", "a", code=2)
