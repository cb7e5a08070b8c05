"""A run that says which classes an image has, in all commands: one set, the digits of each scene."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tinyrun import tiny_plain

from dtem import load_run
from launch.predict.results import SeveralClasses
from launch.saved.run import build, read_run
from pipeline.config.load import from_plain
from pipeline.data.stream import build_eval_loader
from pipeline.train.loop import train


@pytest.fixture(scope="module")
def several(digits, tmp_path_factory) -> Path:
    """The folder of a run of 4 steps, as `trained`, with mixup and cutmix. One word says what is learned."""
    plain = tiny_plain(digits, tmp_path_factory.mktemp("several") / "run", train=dict(steps=4))
    task = plain["tasks"]["digits"]
    del task["data"]["schema"]
    task["data"]["augment"] |= dict(mixup=0.8, cutmix=1.0)
    head = dict(num_classes=10, threshold=0.45, label_smoothing=0.05)
    return train(from_plain(plain | dict(tasks=dict(digits=task | dict(type="multi_label", head=head)))))


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_evaluation_writes_what_it_scores(several, dtem, tmp_path):
    said = dtem("evaluate", several, "--predictions", tmp_path / "made.jsonl", "--out", tmp_path / "out.json")
    scores = json.loads((tmp_path / "out.json").read_text())["scores"]["digits"]
    assert "mAP" in said and "F1_macro" in said and "| class" in said and "AP %" in said
    saved = read_run(several)
    names, model = saved.classes("digits"), build(saved)
    data = saved.config.tasks["digits"].data
    assert data.schema == "multi_label" and len(names) == 10
    wanted, hits, wrong = {}, 0, 0
    with torch.no_grad():
        for batch in build_eval_loader("digits", data, rank=0, world_size=1):
            logits = model.tasks["digits"].infer(model.encoder("digits"), batch.to("cpu"))
            wanted |= dict(
                zip(batch.keys, zip(logits.sigmoid(), batch.targets.labels, strict=True), strict=True)
            )
    found = rows(tmp_path / "made.jsonl")
    assert [line["key"] for line in found] == list(wanted) and len(found) == 25
    for line in found:
        shares, labels = wanted[line["key"]]
        torch.testing.assert_close(torch.tensor(line["probabilities"]), shares)
        assert line["labels"] == labels.nonzero()[:, 0].tolist()
        assert line["label_names"] == [names[i] for i in line["labels"]]
        assert line["predictions"] == [i for i, share in enumerate(line["probabilities"]) if share >= 0.45]
        hits += len(set(line["labels"]) & set(line["predictions"]))
        wrong += len(set(line["labels"]) ^ set(line["predictions"]))
    assert scores["F1_micro"] == pytest.approx(2 * hits / (2 * hits + wrong))
    assert sum(len(line["labels"]) for line in found) > 25


def test_prediction_names_the_classes_above_the_threshold(several, dtem, tmp_path):
    image = tmp_path / "a.png"
    Image.new("RGB", (40, 32), (200, 90, 20)).save(image)
    (found,) = load_run(several, device="cpu").predict([str(image)], top=3)
    assert isinstance(found, SeveralClasses) and found.threshold == 0.45
    assert list(found.probabilities) == sorted(found.probabilities, reverse=True)
    assert len(found.labels) == max(3, found.num_predicted)
    said = dtem("predict", several, image, "--out", tmp_path / "out", "--device", "cpu")
    (line,) = rows(tmp_path / "out" / "predictions.jsonl")
    assert [own["predicted"] for own in line["classes"]] == [
        own["probability"] >= 0.45 for own in line["classes"]
    ]
    first = line["classes"][0]
    assert ("none of the classes" in said) == (not first["predicted"]) and first["name"] in said


def test_pictures_show_the_classes_and_what_is_true(several, dtem, tmp_path):
    dtem("visualise", several, "--out", tmp_path, "--num", 2)
    (page,) = tmp_path.glob("*.html")
    assert "true" in page.read_text()
    assert "report" in dtem("report", several, "--out", tmp_path / "report.html")
    assert "mean average precision" in (tmp_path / "report.html").read_text()


def test_a_step_on_noise_and_the_export_know_such_a_task(several, dtem, tmp_path):
    config = tmp_path / "config.json"
    plain = json.loads((several / "config.json").read_text()) | {"output": str(tmp_path / "run")}
    config.write_text(json.dumps(plain))
    assert "loss" in dtem("train", config, "--dry-run", "--fake-step", 2)
    dtem("export", several, "--format", "safetensors", "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "model.json").read_text())["head"]["task"] == "multi_label"


@pytest.mark.slow
def test_two_processes_have_the_scores_of_one(several, dtem, tmp_path):
    dtem("evaluate", several, "--out", tmp_path / "one.json")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "launch.cli", "evaluate", str(several), "--out"]
    children = [
        subprocess.Popen(
            [*command, str(tmp_path / "two.json")],
            env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": "0"},
        )
        for rank in range(2)
    ]
    assert [child.wait(timeout=600) for child in children] == [0, 0]
    one, two = (json.loads((tmp_path / f"{name}.json").read_text())["scores"] for name in ("one", "two"))
    assert one["digits"].keys() == two["digits"].keys()
    for name, value in one["digits"].items():
        assert two["digits"][name] == (value if value is None else pytest.approx(value, abs=1e-6))
