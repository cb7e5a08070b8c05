"""A run of LeMeViT through the commands: what they give, and why some of them refuse it."""

import json

import pytest
import torch
from safetensors import safe_open
from tiny_lemevit import tiny_section
from tinyrun import tiny_plain

from launch.exported.formats import Program
from launch.saved.run import build, read_run
from pipeline.config.load import from_plain
from pipeline.train.loop import train


@pytest.fixture(scope="module")
def lemevit(digits, tmp_path_factory):
    """The folder of a run of four steps."""
    plain = tiny_plain(
        digits,
        tmp_path_factory.mktemp("lemevit") / "run",
        backbone=tiny_section(),
        merging=dict(policy="none", reduction=0),
        train=dict(mode="backbone", steps=4),
        data=dict(img_size=64),
    )
    return train(from_plain(plain))


def test_it_scores_what_training_said(lemevit, dtem, tmp_path):
    lines = map(json.loads, (lemevit / "metrics.jsonl").read_text().splitlines())
    said = {name: value for line in lines for name, value in line.items() if name.startswith("val/digits/")}
    dtem("evaluate", lemevit, "--out", tmp_path / "scores.json")
    found = json.loads((tmp_path / "scores.json").read_text())["scores"]["digits"]
    assert said and {name: found[name.removeprefix("val/digits/")] for name in said} == pytest.approx(said)


WORDS = [
    ("evaluate", "--policy", "tome"),
    ("sweep", "--rounds", 0),
    ("board", "--rounds", 0),
    ("export", "--adapter", "--out", "x"),
]


@pytest.mark.parametrize("words", WORDS, ids=lambda words: words[0])
def test_what_merges_or_teaches_refuses_it_by_name(lemevit, dtem, words):
    command, *rest = words
    said = dtem(command, lemevit, *rest, code=2)
    refused = "can have none" if command == "export" else "cannot serve 'lemevit_tiny'"
    assert refused in said and "its tokens are a dense grid" in said


def test_its_configuration_says_its_tokens_and_macs(lemevit, dtem):
    task = json.loads(dtem("config", "show", lemevit, "--json"))["tasks"]["digits"]
    assert task["tokens"] == [256, 256, 256, 256, 64, 16, 4, 4] and task["schedule"] == [0] * 7
    assert task["macs"] == task["macs_unmerged"] > 0


def test_its_weights_are_exported_and_a_run_starts_from_them(lemevit, dtem, tmp_path):
    dtem("export", lemevit, "--out", tmp_path / "weights")
    card = json.loads((tmp_path / "weights/model.json").read_text())
    assert card["architecture"]["backbone"] == "lemevit_tiny" and "timm" not in card["architecture"]
    assert not (tmp_path / "weights/config.json").exists(), "timm has no such model"
    with safe_open(tmp_path / "weights/model.safetensors", framework="pt") as file:
        assert "meta_tokens" in file.keys() and "stem.1.running_mean" in file.keys()
    plain = json.loads((lemevit / "config.json").read_text())
    plain["backbone"]["weights"] = str(tmp_path / "weights/model.safetensors")
    plain |= {"output": str(tmp_path / "again"), "train": plain["train"] | {"steps": 3}}
    assert train(from_plain(plain)).is_dir()


@pytest.mark.slow
def test_its_program_is_exported(lemevit, dtem, tmp_path):
    dtem("export", lemevit, "--out", tmp_path, "--format", "pt2")
    program, images = torch.export.load(tmp_path / "model.pt2").module(), torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        ours = Program(build(read_run(lemevit)), "digits")(images)
        torch.testing.assert_close(program(images), ours, atol=1e-5, rtol=1e-5)


def test_its_stages_are_drawn_each_on_its_own_grid(lemevit, dtem, tmp_path):
    dtem("visualise", lemevit, "--num", 1, "--blocks", "1,4,7", "--out", tmp_path)
    (page,) = (path.read_text() for path in tmp_path.glob("*.html"))
    assert all(f"block {block}: {count} tokens" in page for block, count in ((1, 260), (4, 68), (7, 8)))
