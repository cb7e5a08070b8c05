"""`dtem evaluate --predictions`: each sample once, in the forms that others read."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from damage import damaged
from PIL import Image

from launch.measure.prediction_files import PredictionFiles, _file_name
from launch.saved.run import build, read_run
from pipeline.data.stream import build_eval_loader
from pipeline.data.targets import CaptionTargets, MaskTargets
from pipeline.errors import CheckpointError, SampleError
from pipeline.ranks import Processes


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_classes_are_those_that_are_scored(trained, dtem, tmp_path):
    plain = dtem("evaluate", trained)
    dtem("evaluate", trained, "--out", tmp_path / "plain.json")
    said = dtem("evaluate", trained, "--predictions", tmp_path / "made.jsonl", "--out", tmp_path / "out.json")
    result = json.loads((tmp_path / "out.json").read_text())
    scores = result["scores"]["digits"]
    alone = json.loads((tmp_path / "plain.json").read_text())
    assert alone["scores"]["digits"] == scores and alone["confusion"] == result["confusion"]
    (line,) = [line for line in plain.splitlines() if line.startswith("digits: top1")]
    assert line in said and f"top1 {100 * scores['top1']:.2f} %" in line
    found = lines(tmp_path / "made.jsonl")
    assert len({line["key"] for line in found}) == len(found) == 25
    hits = [line["label"] == line["prediction"] for line in found]
    assert np.mean(hits) == pytest.approx(scores["top1"])
    matrix = np.array(result["confusion"]["digits"])
    table = np.zeros((10, 10), int)
    for line in found:
        table[line["label"], line["prediction"]] += 1
    assert (matrix == table).all()
    for label in range(10):
        of = table[label].sum()
        assert scores[f"Acc/{label}"] == (pytest.approx(table[label, label] / of) if of else None)
    worst = Counter({(i, j): int(table[i, j]) for i in range(10) for j in range(10) if i != j})
    (label, other), count = worst.most_common(1)[0]
    names = result["classes"]["digits"]
    assert f"{count} sample" in said and "taken for" in said and "taken for" not in plain
    assert any(line.get("label_name") == names[label] for line in found) and other in range(10)
    saved = read_run(trained)
    model, data = build(saved), saved.config.tasks["digits"].data
    with torch.no_grad():
        shares = {
            key: row
            for batch in build_eval_loader("digits", data, rank=0, world_size=1)
            for key, row in zip(
                batch.keys,
                model.tasks["digits"].infer(model.encoder("digits"), batch.to("cpu")).softmax(-1),
                strict=True,
            )
        }
    assert [line["key"] for line in found] == list(shares)
    assert all(
        line["probability"] == pytest.approx(float(shares[line["key"]].max()), rel=1e-5) for line in found
    )


def test_masks_are_files_of_their_keys_and_give_the_same_score(three_tasks, dtem, tmp_path):
    run = three_tasks("shared")
    dtem(
        "evaluate", run, "--task", "masks", "--predictions", tmp_path / "masks", "--out", tmp_path / "o.json"
    )
    data = read_run(run).config.tasks["masks"].data
    hits = total = 0
    keys = []
    for batch in build_eval_loader("masks", data, rank=0, world_size=1):
        for key, mask in zip(batch.keys, batch.targets.mask, strict=True):
            with Image.open(tmp_path / "masks" / f"{_file_name(key)}.png") as image:
                labels = torch.from_numpy(np.array(image))
            keys.append(key)
            hits, total = hits + int((labels == mask)[mask != 255].sum()), total + int((mask != 255).sum())
    result = json.loads((tmp_path / "o.json").read_text())
    scores, matrix = result["scores"]["masks"], np.array(result["confusion"]["masks"])
    assert hits / total == pytest.approx(scores["aAcc"]) and matrix.sum() == total
    for label in range(len(matrix)):
        either = matrix[label].sum() + matrix[:, label].sum() - matrix[label, label]
        wanted = pytest.approx(matrix[label, label] / either) if either else None
        assert scores[f"IoU/{label}"] == wanted
    assert len(list((tmp_path / "masks").iterdir())) == len(keys) == 25
    assert "give an empty or new folder" in dtem(
        "evaluate", run, "--task", "masks", "--predictions", tmp_path / "masks", code=2
    )


def test_masks_of_one_name_are_refused_and_leave_nothing(segmenter, dtem, tmp_path):
    """Each of these shards begins its keys anew."""
    said = dtem("evaluate", segmenter, "--predictions", tmp_path / "masks", code=2)
    assert "two samples have the key '000000'" in said and not list(tmp_path.iterdir())


def test_several_tasks_have_a_folder(three_tasks, dtem, tmp_path):
    dtem("evaluate", three_tasks("shared"), "--predictions", tmp_path / "all")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [
        "captions.json",
        "digits.jsonl",
        "masks",
    ]
    results = json.loads((tmp_path / "all/captions.json").read_text())
    assert len(results) == 25 and all(own.keys() == {"image_id", "caption"} for own in results)
    keys = {line["key"] for line in lines(tmp_path / "all/digits.jsonl")}
    assert len({own["image_id"] for own in results}) == len(keys) == 25


def test_samples_that_cannot_be_read_are_left_out_of_both(trained, digits, dtem, tmp_path):
    shards = damaged(digits, tmp_path / "shards", {("val-00000.tar", 0): "jpg"})
    option = ("--set", f"tasks.digits.data.val={shards}")
    assert "1 of 25 samples" in dtem(
        "evaluate", trained, *option, "--predictions", tmp_path / "a.jsonl", code=1
    )
    assert len(lines(tmp_path / "a.jsonl")) == 24


def files(path, reads) -> PredictionFiles:
    return PredictionFiles(path, {"a": reads}, Processes(torch.device("cpu")))


def test_the_ids_of_coco_are_numbers(tmp_path):
    made = files(tmp_path / "out.json", CaptionTargets)
    for key in ("COCO_val2014_000000391895", "000000000042", "photo one"):
        made.sinks["a"].add_line(0, {"key": key, "caption": "a"})
    made.finish({"a": 3})
    ids = [own["image_id"] for own in json.loads((tmp_path / "out.json").read_text())]
    assert ids == [391895, 42, "photo one"]
    again = files(tmp_path / "out.json", CaptionTargets)
    for key in ("7", "007"):
        again.sinks["a"].add_line(0, {"key": key, "caption": "a"})
    with pytest.raises(CheckpointError, match="two samples have the image_id 7"):
        again.finish({"a": 2})
    again.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"] and len(ids) == 3


def test_a_key_leads_nowhere_else(tmp_path):
    keys = ["../../up", "/etc/passwd", "..", "a/b", "a%2Fb", "x" * 500, "x" * 501, "é.png"]
    made = files(tmp_path / "masks", MaskTargets)
    for key in keys:
        made.sinks["a"].add_mask(key, torch.zeros(2, 3, dtype=torch.uint8))
        made.sinks["a"].add_line(0, {"key": key})
    with pytest.raises(SampleError, match="two samples have the key 'a/b'"):
        made.sinks["a"].add_mask("a/b", torch.zeros(2, 3, dtype=torch.uint8))
    made.finish({"a": len(keys)})
    assert len(list((tmp_path / "masks").iterdir())) == len(keys) and len(list(tmp_path.iterdir())) == 1


def test_parts_that_are_not_there_are_told(tmp_path):
    made = files(tmp_path / "out.jsonl", MaskTargets)
    with pytest.raises(CheckpointError, match="0 of 3 predictions of task 'a'"):
        made.finish({"a": 3})
    made.discard()
