"""The commands on a run that captions images and compares them with captions."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from textpage import page_of
from timm.data import ImageNetInfo

from launch.measure.compute import first_batch, workload
from launch.measure.evaluator import evaluator_of
from launch.measure.planning import Aims
from launch.measure.sweep import sweep
from launch.pictures.html_page import write_html
from launch.pictures.png_page import write_png
from launch.saved.run import build, read_run
from launch.saved.zero_shot import prompts
from pipeline.data.make.digits.scenes import CLASSES, MASK_CLASSES, digit_scenes_jobs
from pipeline.data.make.write import write_shards
from pipeline.data.stream import build_eval_loader
from pipeline.errors import ConfigError
from pipeline.model import TASKS
from pipeline.train.evaluate import evaluate
from tasks.captions.metrics import caption_scores
from tasks.captions.retrieval import recalls


def scores(dtem, tmp_path, *argv) -> dict:
    dtem("evaluate", *argv, "--out", tmp_path / "scores.json")
    return json.loads((tmp_path / "scores.json").read_text())["scores"]


def test_the_saved_run_scores_what_training_said(captioner, dtem, tmp_path):
    lines = [json.loads(line) for line in (captioner / "metrics.jsonl").read_text().splitlines()]
    said = {
        name.removeprefix("val/scenes/"): value
        for line in lines
        for name, value in line.items()
        if name.startswith("val/")
    }
    found = scores(dtem, tmp_path, captioner)["scenes"]
    assert (
        said["samples"] == 25 and said.keys() | {"METEOR", "SPICE"} == found.keys()
    )  # training does not wait for those
    same = {
        "CIDEr",
        "BLEU-1",
        "BLEU-4",
        "ROUGE-L",
        "loss",
        "image_to_text_R@1",
        "text_to_image_R@10",
        "samples",
    }
    assert {name: found[name] for name in same} == pytest.approx({name: said[name] for name in same})


def test_what_was_not_run_is_na_and_null(captioner, dtem, tmp_path):
    said = dtem("evaluate", captioner, "--out", tmp_path / "scores.json")
    found = json.loads((tmp_path / "scores.json").read_text())["scores"]["scenes"]
    assert found["METEOR"] is found["SPICE"] is found["PTB"] is None
    assert (
        "METEOR n/a" in said
        and "SPICE n/a" in said
        and "PTB n/a" in said
        and f"CIDEr {found['CIDEr']:.6g}" in said
    )


def in_float64(data):
    """The batches of evaluation for a model in float64: which words follow may change with another batch's
    rounding."""
    loader = build_eval_loader("scenes", data, rank=0, world_size=1)
    batches = [batch.to("cpu") for batch in loader]
    return [replace(batch, images=batch.images.double()) for batch in batches]


def test_scores_are_those_of_all_images_at_once(captioner):
    """However they are batched: features and texts stay with their images."""
    run = read_run(captioner)
    model, data = build(run).double(), run.config.tasks["scenes"].data
    (all_,) = in_float64(replace(data, eval_batch_size=25))
    tallies = model.evaluate(all_)
    image, text, captions = (tallies[name].values for name in ("image", "text", "captions_of_image"))
    assert len(image) == len(captions) == 25 and len(text) == 125 and len(tallies["captions"].values) == 25
    expected = caption_scores(tallies["captions"].values) | recalls(image, text, captions)
    assert len(in_float64(data)) == 3
    found = evaluate(evaluator_of(model), {"scenes": in_float64(data)})["scenes"]
    assert {name: found[name] for name in expected} == pytest.approx(expected)


@pytest.mark.slow
def test_two_processes_count_each_image_once(captioner, dtem, tmp_path):
    alone = scores(dtem, tmp_path, captioner)["scenes"]
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
        str(captioner),
        "--out",
        str(tmp_path / "two.json"),
    ]
    children = [
        subprocess.Popen(command, env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": "0"})
        for rank in range(2)
    ]
    assert [child.wait(timeout=600) for child in children] == [0, 0]
    two = json.loads((tmp_path / "two.json").read_text())["scores"]["scenes"]  # of 2 batches and of 1
    known = {name for name, value in alone.items() if value is not None}
    assert two.keys() == alone.keys() and two["samples"] == 25
    assert {name: two[name] for name in known} == pytest.approx(
        {name: alone[name] for name in known}, rel=1e-5
    )


@pytest.fixture(scope="module")
def swept(captioner):
    return sweep([read_run(captioner)], ["tome"], Aims([2, 4]), rounds=1)[0]


def test_encoder_and_decoder_are_counted_apart_and_both_fall_with_the_tokens(captioner, swept):
    run = read_run(captioner)
    batch = first_batch("scenes", run.config.tasks["scenes"].data).to("cpu")
    unseen = replace(
        batch,
        targets=replace(
            batch.targets, references=batch.targets.references[::-1], tokens=batch.targets.tokens[:, :3]
        ),
    )
    assert (
        workload((build(run, "none"), 0), unseen).head_macs == swept.whole.head_macs
    )  # what is compared with is no work
    points = (swept.whole, *swept.points)
    for kind in ("encoder_macs", "head_macs"):
        macs = [getattr(point, kind) for point in points]
        assert macs == sorted(macs, reverse=True) and len(set(macs)) == 3, (kind, macs)
    width, vocabulary, tokens = 16, 28, swept.whole.tokens[-1]
    mlp, projections = 2 * 4 * width * width, 4 * width * width
    attended = 2 * width * sum(range(1, 7))  # six words, each looks at those so far
    text, decoder = (6 * (mlp + projections) + attended for _ in range(2))
    cross = 6 * (mlp + 2 * projections // 4 + 2 * width * tokens) + 2 * tokens * width * width
    assert (
        swept.whole.head_macs
        == text + decoder + cross + 6 * width * vocabulary + tokens * 24 * width + 24 * width
    )


def test_compute_does_not_depend_on_what_is_said(captioner, swept, monkeypatch):
    """A model that ends each caption at once has the same MACs as one that never does; its words are told
    beside them."""
    run = read_run(captioner)
    batch, model = first_batch("scenes", run.config.tasks["scenes"].data).to("cpu"), build(run, "none")
    task = model.tasks["scenes"]
    next_words, task.generation = task.next_words, replace(task.generation, min_length=1)

    def ending_at_once(image):
        step = next_words(image)

        def ended(last, past):
            logits, past = step(last, past)
            return logits.index_fill(1, torch.tensor([task.special.eos]), 1e4), past

        return ended

    monkeypatch.setattr(task, "next_words", ending_at_once)
    assert set(task.infer(model.encoder("scenes", 0), batch)) == {""}
    assert workload((model, 0), batch).head_macs == swept.whole.head_macs
    assert swept.whole.scores["words"] == [pytest.approx(5.5, abs=0.5)], (
        "six words, the last of which may be the end"
    )


def test_the_sweep_shows_captions_in_their_units(captioner, dtem, tmp_path):
    said = dtem(
        "sweep", captioner, "--policy", "tome", "--reduction", "2", "--rounds", "1", "--out", tmp_path
    )
    (head, *_) = (line for line in said.splitlines() if line.startswith("| policy"))
    columns = [column.strip() for column in head.split("|")[3:-1]]
    assert (
        columns[:6] == ["CIDEr", "BLEU-4 %", "words", "encoder GMACs", "encoder %", "decoder GMACs"]
        and "images/s" in columns
    )
    (result,) = json.loads((tmp_path / "sweep.json").read_text())
    assert (
        result["units"] == {"CIDEr": "", "BLEU-4": "%", "words": ""}
        and 0 <= result["points"][0]["scores"]["CIDEr"][0] <= 10
    )
    figures = {path.name: path.read_text() for path in tmp_path.glob("*.svg")}
    assert set(figures) == {"sweep_scenes.svg", "sweep_scenes_encoder.svg"}
    assert all(">CIDEr<" in figure and "CIDEr (" not in figure for figure in figures.values())


@pytest.mark.parametrize("task", TASKS.names())
def test_what_ranks_checkpoints_is_shown_first(task):
    kind = TASKS.get(task)
    assert next(iter(kind.metric_units)) == kind.main_metric and set(kind.metric_units.values()) <= {"%", ""}


def test_the_page_holds_references_and_captions_at_every_reduction(captioner, dtem, tmp_path):
    dtem("visualise", captioner, "--num", 3, "--reduction", "2,4", "--blocks", "3", "--out", tmp_path)
    page = (tmp_path / "groups_scenes_dtem.html").read_text()
    run = read_run(captioner)
    batch = first_batch("scenes", replace(run.config.tasks["scenes"].data, eval_batch_size=3)).to("cpu")
    model = build(run)
    for reduction in (0, 2, 4):
        label = f"r {reduction}" if reduction else "unmerged"
        assert page.count(f"</b><small>{label}</small>") == 3
        made = model.tasks["scenes"].infer(model.encoder("scenes", reduction), batch)
        assert all(f"<b>{caption}</b><small>{label}</small>" in page for caption in made)
    assert all(f"<li>{text}</li>" in page for own in batch.targets.references for text in own)
    assert page.count("<summary>references (") == 3
    assert page.count("<img") == 3 * (1 + 2) and (
        tmp_path / "groups_scenes_dtem.png"
    ).read_bytes().startswith(b"\x89PNG")


def test_text_in_a_page_is_text(tmp_path):
    page = page_of("<b>costs $5 & $6_x</b>" * 5, np.zeros((8, 8, 3), dtype=np.uint8))
    assert (
        "<li>&lt;b&gt;costs $5 &amp; $6_x&lt;/b&gt;" in write_html(page, tmp_path / "page.html").read_text()
    )
    assert write_png(page, tmp_path / "page.png").stat().st_size > 1000


def test_a_captioner_classifies(captioner, digits, dtem, tmp_path):
    zero_shot = ["--zero-shot", digits, "--templates", "a photo of a {}", "a big {}"]
    found = scores(dtem, tmp_path, captioner, *zero_shot)
    assert (
        found["zero_shot"]["samples"] == 25
        and 0 <= found["zero_shot"]["top1"] <= found["zero_shot"]["top5"] <= 1
    )
    names = tmp_path / "names.json"
    names.write_text(json.dumps(["zero", "one"]))
    assert "have 10 classes, and 2 have a name" in dtem(
        "evaluate", captioner, *zero_shot, "--class-names", names, code=2
    )
    assert "cannot be read" in dtem(
        "evaluate", captioner, *zero_shot, "--class-names", tmp_path / "no.json", code=2
    )
    names.write_text("[]")
    assert "list of names, one or more" in dtem(
        "evaluate", captioner, *zero_shot, "--class-names", names, code=2
    )
    assert "a photo of a {}." in dtem(
        "evaluate", captioner, "--zero-shot", digits, "--templates", "a photo", code=2
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_captioner_classifies_the_split_that_is_asked_for(captioner, dtem, tmp_path, split):
    """Of shards that have no other."""
    jobs = digit_scenes_jobs(train=0, val=6, size=32, shard_size=6)
    write_shards(
        [replace(jobs[-1], name=f"{split}-00000.tar", split=split)],
        tmp_path,
        classes=CLASSES,
        mask_classes=MASK_CLASSES,
    )
    own = ["--split", split, "--cfg-options", f"tasks.scenes.data.{split}={tmp_path}"]
    assert scores(dtem, tmp_path, captioner, *own, "--zero-shot", tmp_path)["zero_shot"]["samples"] == 6


def test_other_runs_do_not_classify_without_a_head(trained, digits, dtem):
    assert "needs a run with a task of type captioning" in dtem(
        "evaluate", trained, "--zero-shot", digits, code=2
    )


def test_captions_have_the_names_that_people_use():
    own = ["n01440764 tench, Tinca tinca", "n01443537 goldfish, Carassius auratus", "red, green and blue"]
    assert prompts(own) == (["tench", "goldfish", "red, green and blue"], ("a photo of a {}.",))
    with pytest.raises(
        ConfigError, match="class 'n01443537' has no name that a caption can use; .* --class-names"
    ):
        prompts(["n01440764 tench", "n01443537"])


def test_a_thousand_other_synsets_keep_their_own_names():
    """As another choice out of ImageNet's 21,841 has: with the names of the usual ones every image would be
    of a wrong class."""
    numbers = ImageNetInfo("imagenet-1k").label_names()
    others = [f"{number} name {i}, y" for i, number in enumerate([*numbers[:-1], "n15102894"])]
    names, templates = prompts(others)
    assert names == [f"name {i}" for i in range(1000)] and len(templates) == 1


def test_imagenets_classes_are_asked_for_as_clip_was_measured():
    numbers = ImageNetInfo("imagenet-1k").label_names()
    names, templates = prompts([f"{number} x, y" for number in numbers])
    assert (names, templates) == prompts(numbers)
    assert len(names) == 1000 and names[0] == "tench" and names[2] == "great white shark"
    assert (
        len(templates) == 80
        and templates[0] == "a bad photo of a {}."
        and all(text.count("{}") == 1 for text in templates)
    )
