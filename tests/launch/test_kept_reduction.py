"""A run whose thresholds were trained: what they kept is a reduction of the commands, and the run serves
other policies as any run does."""

import json

import pytest
from tinyrun import tiny_plain

from launch.saved.run import build, read_run
from pipeline.config.load import from_plain
from pipeline.train.loop import train


@pytest.fixture(scope="module")
def masking(digits, tmp_path_factory):
    """The folder of a run of 4 steps: policy as_vit, objective budget, thresholds near the scores."""
    output = tmp_path_factory.mktemp("masking") / "run"
    merging = dict(policy="as_vit", reduction=[2, 2, 0], options=dict(temperature=0.5, start=1.5))
    sections = dict(merging=merging, objective=dict(type="budget"), train=dict(steps=4))
    return train(from_plain(tiny_plain(digits, output, **sections)))


def evaluated(dtem, folder, *argv):
    dtem("evaluate", *argv, "--out", folder / "scores.json")
    return json.loads((folder / "scores.json").read_text())


def test_what_thresholds_kept_is_saved_and_removed(masking, dtem, tmp_path):
    saved = read_run(masking)
    shares = [saved.tensors[f"backbone.blocks.{number}.metric.kept"].item() for number in range(3)]
    assert 1 >= shares[0] >= shares[1] >= shares[2] > 0, "noted in each step"
    result = evaluated(dtem, tmp_path, masking, "--reduction", "kept")
    left, expected = 16, []
    for share in shares:
        expected.append(min(left - round(16 * share), left // 2))
        left -= expected[-1]
    assert result["schedule"]["digits"] == expected and "measured" not in result
    listed = evaluated(dtem, tmp_path, masking, "--reduction", str(expected))
    assert listed["scores"] == result["scores"]
    rows = [json.loads(line) for line in (masking / "metrics.jsonl").read_text().splitlines()]
    assert any(name.endswith("digits/gmacs") for row in rows for name in row)


def test_thresholds_are_missing_in_no_run_and_wanted_in_none(masking, trained, dtem, tmp_path):
    """Inference does not read them; an embedding that was never learned is asked for all the same."""
    for run, policy in ((masking, "tome"), (masking, "as_vit"), (trained, "as_vit")):
        assert evaluated(dtem, tmp_path, run, "--policy", policy, "--reduction", 2)["scores"]["digits"]
    assert build(read_run(trained), "as_vit").backbone.policy.masks
    assert "has no metric embedding" in dtem("evaluate", masking, "--policy", "dtem", code=2)
    assert "this model has none" in dtem("evaluate", trained, "--reduction", "kept", code=2)
    assert "as_vit_untrained" in dtem("evaluate", masking, "--policy", "as_vit_untrained", code=2)


def test_a_run_with_thresholds_is_exported(masking, dtem, tmp_path):
    said = dtem("export", masking, "--reduction", "kept", "--out", tmp_path / "out")
    assert "reduction kept on" in said and (tmp_path / "out").is_dir()
