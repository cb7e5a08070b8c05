"""Trials of a run: fewer steps, few samples, less evaluation; each is said where a reader would be misled."""

import json
import logging
from itertools import islice

import pytest
from tinyrun import tiny_plain

from launch import cli
from pipeline.config.load import from_plain
from pipeline.data.stream import build_eval_loader, build_stream

ALONE = dict(rank=0, world_size=1)


def data_of(digits, **limits):
    plain = tiny_plain(digits, "runs/x")
    plain["tasks"]["digits"]["data"] |= limits
    return from_plain(plain).tasks["digits"].data


def keys_of(batches):
    return [key for batch in batches for key in batch.keys]


@pytest.mark.parametrize("limit", [1, 5])
def test_the_same_few_samples_are_trained_on_and_evaluated(digits, limit):
    data = data_of(digits, overfit=limit)
    stream = build_stream("digits", data, seed=3, **ALONE)
    whole = keys_of(build_eval_loader("digits", data_of(digits), split="train", **ALONE))
    seen = keys_of(islice(iter(stream), 6))
    assert stream.num_samples == limit < len(whole)
    epochs = [seen[i : i + limit] for i in range(0, len(seen) - limit + 1, limit)]
    assert all(sorted(epoch) == sorted(whole[:limit]) for epoch in epochs)
    assert keys_of(build_eval_loader("digits", data, split="train", **ALONE)) == whole[:limit]


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_evaluation_is_limited_over_all_ranks_and_says_so(digits, world_size, caplog):
    data, whole = data_of(digits, limit_val=5, eval_batch_size=2), data_of(digits, eval_batch_size=2)
    with caplog.at_level(logging.WARNING):
        loaders = [
            build_eval_loader("digits", data, rank=rank, world_size=world_size) for rank in range(world_size)
        ]
    every = keys_of(build_eval_loader("digits", whole, **ALONE))
    assert sorted(key for loader in loaders for key in keys_of(loader)) == sorted(every[:5])
    assert {(loader.num_samples, loader.num_stored) for loader in loaders} == {(5, len(every))}
    assert f"evaluates the first 5 of {len(every)} samples" in caplog.text


def test_a_trial_of_the_command_line_is_in_its_files(digits, dtem, tmp_path):
    plain = tiny_plain(digits, tmp_path / "run", train=dict(steps=9))
    (tmp_path / "run.json").write_text(json.dumps(plain))
    dtem("train", tmp_path / "run.json", "--max-steps", 2, "--overfit", 4, "--limit-val", 3)
    config = json.loads((tmp_path / "run/config.json").read_text())
    own = config["tasks"]["digits"]["data"]
    assert (config["train"]["max_steps"], own["overfit"], own["limit_val"]) == (2, 4, 3)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert max(row["step"] for row in rows) == 2
    assert [row["val/digits/samples"] for row in rows if "val/digits/samples" in row] == [3]
    dtem("evaluate", tmp_path / "run", "--out", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["scores"]["digits"]["samples"] == 3 < scores["samples_of_split"]["digits"]


def test_limits_are_counts(capsys):
    for flag in ("--max-steps", "--overfit", "--limit-val"):
        with pytest.raises(SystemExit):
            cli.main(["train", "x.py", flag, "0"])
        assert flag in capsys.readouterr().err
