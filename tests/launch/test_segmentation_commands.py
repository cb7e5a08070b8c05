"""The commands on a run with masks, whose validation images are of three sizes."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from launch.measure.compute import first_batch, first_grid, workload
from launch.measure.evaluator import evaluator_of
from launch.measure.planning import Aims
from launch.measure.sweep import sweep
from launch.saved.run import build, read_run
from pipeline.backbone.macs import count_macs
from pipeline.data.stream import build_eval_loader
from pipeline.errors import ConfigError
from pipeline.merging.schedule import reduction_for_merged
from pipeline.train.evaluate import evaluate

SLIDE = [
    "tasks.scenes.head.inference.mode=slide",
    "tasks.scenes.head.inference.crop_size=24",
    "tasks.scenes.head.inference.stride=16",
]


def scores(dtem, tmp_path, *argv) -> dict:
    dtem("evaluate", *argv, "--out", tmp_path / "scores.json")
    return json.loads((tmp_path / "scores.json").read_text())


def test_the_saved_run_scores_what_training_said(segmenter, dtem, tmp_path):
    lines = [json.loads(line) for line in (segmenter / "metrics.jsonl").read_text().splitlines()]
    said = {
        name.removeprefix("val/scenes/"): value
        for line in lines
        for name, value in line.items()
        if name.startswith("val/")
    }
    result = scores(dtem, tmp_path, segmenter)
    assert result["scores"]["scenes"] == pytest.approx(said) and said["samples"] == 9
    assert result["classes"]["scenes"][:2] == ["ground", "zero"]


def test_absent_classes_are_null_in_json_and_na_in_the_table(segmenter, dtem, tmp_path):
    said = dtem("evaluate", segmenter, "--out", tmp_path / "scores.json")
    values = json.loads((tmp_path / "scores.json").read_text())["scores"]["scenes"]
    absent = [i for i in range(11) if values[f"Acc/{i}"] is None]
    assert absent and all(values[f"IoU/{i}"] in (0.0, None) for i in absent)
    rows = [line for line in said.splitlines() if line.startswith("| ")]
    assert rows[0].split("|")[1:4] == [" class  ", " IoU % ", " Acc % "] and rows[2].startswith("| ground")
    assert [i for i, row in enumerate(rows[2:]) if row.endswith(" n/a |")] == absent and "IoU/" not in said


@pytest.mark.slow
def test_two_processes_count_each_image_once(segmenter, dtem, tmp_path):
    alone = scores(dtem, tmp_path, segmenter)["scores"]["scenes"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world |= {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [
        sys.executable,
        "-m",
        "launch.cli",
        "evaluate",
        str(segmenter),
        "--out",
        str(tmp_path / "two.json"),
    ]
    children = [
        subprocess.Popen(command, env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": "0"})
        for rank in range(2)
    ]
    assert [child.wait(timeout=600) for child in children] == [0, 0]
    assert (
        json.loads((tmp_path / "two.json").read_text())["scores"]["scenes"] == alone
    )  # counts are whole numbers


def test_inference_can_be_replaced_when_evaluating(segmenter, dtem, tmp_path):
    whole = scores(dtem, tmp_path, segmenter)
    slide = scores(dtem, tmp_path, segmenter, "--cfg-options", *SLIDE)
    assert whole["scores"] != slide["scores"] and sum(slide["schedule"]["scenes"]) > 0
    one = scores(
        dtem,
        tmp_path,
        segmenter,
        "--cfg-options",
        *SLIDE[:1],
        *(option.split("=")[0] + "=80" for option in SLIDE[1:]),
    )
    assert one["scores"] == whole["scores"]  # every image is smaller than such a window
    assert "no option 'croop'" in dtem(
        "evaluate", segmenter, "--cfg-options", "tasks.scenes.head.inference.croop=3", code=2
    )


@pytest.fixture(scope="module")
def swept(segmenter):
    return sweep([read_run(segmenter)], ["tome", "dtem"], Aims([0.25, 0.5], merged=True), rounds=1)[0]


def test_a_share_is_merged_exactly_whatever_the_images_size(segmenter, swept):
    run = read_run(segmenter)
    loader = build_eval_loader("scenes", run.config.tasks["scenes"].data, rank=0, world_size=1)
    for point in swept.points:
        model, table = build(run, point.policy), 0
        for batch in (batch.to("cpu") for batch in loader):
            share = reduction_for_merged(model.backbone.depth, point.target, first_grid(model, batch))
            table = table + model.evaluate(batch, reduction=share)["confusion"]
        expected = model.scores("scenes", {"confusion": table})
        assert {name: [value] for name, value in expected.items()} == point.scores
        assert point.tokens[-1] == 1 + round((1 - point.target) * 16)  # of the first image
    assert (
        swept.metric == "mIoU" and swept.conditions["samples"] == 9 and len(swept.conditions["classes"]) == 11
    )


def test_encoder_and_decoder_are_counted_apart(segmenter, swept):
    backbone = build(read_run(segmenter), "none").backbone
    decoder = 16 * (24 * 8 + 8 * 11)  # two layers on each cell
    assert all(point.head_macs == decoder for point in (swept.whole, *swept.points))
    assert swept.whole.encoder_macs == count_macs(backbone, (4, 4), 0).total
    assert all(
        len(point.images_per_s) == 1 and point.encoder_images_per_s > point.images_per_s
        for point in swept.points
    )


def test_the_work_of_an_image_is_that_of_all_its_windows(segmenter):
    run = read_run(segmenter, overrides=SLIDE)
    model, data = build(run), run.config.tasks["scenes"].data
    batch = first_batch("scenes", data).to("cpu")
    assert batch.images.shape == (1, 3, 32, 32) and first_grid(model, batch) == (3, 3)
    work = workload((model, 2), batch)
    one = count_macs(model.backbone, (3, 3), 2)
    assert (
        work.encoder_macs == 4 * one.total
        and work.metric_macs == 4 * sum(one.metric)
        and work.tokens == one.tokens
    )
    assert work.head_macs == 4 * 9 * (24 * 8 + 8 * 11)


def test_a_grid_that_is_read_by_parts_is_in_the_work(segmenter):
    """For unmerging by residual 17 tokens read five, prefix included; who merges pairs only gathers."""
    run = read_run(segmenter)
    batch = first_batch("scenes", run.config.tasks["scenes"].data).to("cpu")
    for policy, restored in (("stvit_untrained", 17 * 5 * 24), ("tome", 0)):
        model = build(run, policy)
        work = workload((model, [12, 0, 0] if restored else [4, 4, 4]), batch)
        grid = model.backbone.grid_of_size(model.tasks["scenes"].input_size(batch))
        assert work.encoder_macs == count_macs(model.backbone, grid, list(work.schedule)).total + restored


def test_the_sweep_writes_both_computes(segmenter, dtem, tmp_path):
    said = dtem("sweep", segmenter, "--policy", "tome", "--macs", "0.9", "--rounds", "0", "--out", tmp_path)
    assert "encoder GMACs" in said and "mIoU %" in said and "IoU/0" not in said
    (result,) = json.loads((tmp_path / "sweep.json").read_text())
    point = result["points"][1]
    assert point["encoder_macs"] == point["macs"] - point["head_macs"] and point["encoder_macs_ratio"] <= 0.9
    assert None in [value for values in point["scores"].values() for value in values]
    assert {path.name for path in tmp_path.glob("*.png")} == {"sweep_scenes.png", "sweep_scenes_encoder.png"}


def test_a_share_that_cannot_be_reached_is_left_out(segmenter, caplog):
    with pytest.raises(ConfigError, match="no policy can be run"):
        sweep([read_run(segmenter)], ["tome"], Aims([0.95], merged=True), rounds=0)
    assert "at most 88% can" in caplog.text


def test_evaluation_under_bf16_is_close(segmenter):
    run = read_run(segmenter)
    loader = build_eval_loader("scenes", run.config.tasks["scenes"].data, rank=0, world_size=1)
    exact, rough = (
        evaluate(evaluator_of(build(run), precision), {"scenes": loader})["scenes"]["aAcc"]
        for precision in ("fp32", "bf16")
    )
    assert exact == pytest.approx(rough, abs=0.05)


def test_pictures_show_reference_predictions_and_groups(segmenter, dtem, tmp_path):
    dtem("visualise", segmenter, "--num", 7, "--reduction", "1,3", "--blocks", "3", "--out", tmp_path)
    page = (tmp_path / "groups_scenes_dtem.html").read_text()
    assert page.count("<img") == 7 * (1 + 3 * 2 + 1 + 2)
    for caption in ("reference", "predicted, unmerged", "predicted, r 1", "predicted, r 3"):
        assert page.count(f"<figcaption>{caption}</figcaption>") == 7
    assert "r 3, block 3: 8 tokens" in page and "r 3, block 3: 73 tokens" in page
    assert "</i>ground" in page and (tmp_path / "groups_scenes_dtem.png").read_bytes().startswith(b"\x89PNG")


def test_images_of_two_sizes_have_the_scores_of_batches_of_one(segmenter):
    run = read_run(segmenter)
    data, model = run.config.tasks["scenes"].data, build(run, "none")
    found = []
    for size in (1, 4):
        loader = build_eval_loader("scenes", replace(data, eval_batch_size=size), rank=0, world_size=1)
        (scores,) = evaluate(evaluator_of(model), {"scenes": loader}).values()
        found.append(scores)
        assert scores["samples"] == loader.num_samples
    assert len({batch.images.shape[-2:] for batch in loader}) == 3
    # a pixel may round to another class in another batch
    assert found[1]["aAcc"] == pytest.approx(found[0]["aAcc"], abs=1e-3)


def test_reductions_are_checked_against_the_first_image(segmenter, dtem):
    assert "largest even reduction is 5" in dtem("evaluate", segmenter, "--reduction", 9, code=2)


def test_a_merge_at_r_0_is_the_unmerged_model(segmenter):
    run = read_run(segmenter)
    batch = first_batch("scenes", run.config.tasks["scenes"].data).to("cpu")
    whole = build(run, "none").evaluate(batch)["confusion"]
    assert all(
        torch.equal(build(run, policy).evaluate(batch, reduction=0)["confusion"], whole)
        for policy in ("tome", "dtem")
    )
