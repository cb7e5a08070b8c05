"""A run that goes on with other settings: what is said of it, what goes on, and what begins anew."""

import json
import logging
import shutil
from dataclasses import replace

import pytest
from checkpointkit import forge

from pipeline.errors import CheckpointError
from pipeline.run_folder import checkpoints_of, last, step_of
from pipeline.train.loop import train
from pipeline.train.rates import lr_at
from pipeline.train.storage import read_manifest

SHORT = dict(steps=2, log_every=1, eval_every=None)


@pytest.fixture
def tiny_run(tiny_run):
    """Runs that may end after their first step."""
    return lambda *output, optim=None, **sections: tiny_run(
        *output, optim=dict(warmup_steps=0) | (optim or {}), **sections
    )


def rates(output) -> dict[int, float]:
    lines = (json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["lr"] for line in lines if "lr" in line}


@pytest.fixture
def said(caplog, capsys):
    """What was said since the last call."""

    def since() -> str:
        text = caplog.text + capsys.readouterr().err
        caplog.clear()
        return text

    caplog.set_level(logging.INFO)
    return since


def test_a_changed_run_is_refused_with_both_ways_out_and_loses_nothing(tiny_run, tmp_path):
    train(tiny_run(train=SHORT))
    with pytest.raises(CheckpointError, match=r"train.steps: 2 there, 4 here") as caught:
        train(tiny_run(train=SHORT | dict(steps=4)))
    assert "--resume extend" in str(caught.value) and "--overwrite" in str(caught.value)
    assert step_of(last(checkpoints_of(tmp_path / "run"))) == 2


def test_a_longer_run_goes_on_in_the_new_schedule_at_its_own_step(tiny_run, tmp_path, said):
    train(tiny_run(train=SHORT))
    longer = tiny_run(train=SHORT | dict(steps=5), optim=dict(lr=2e-3, ema_decay=0.9))
    train(longer, "extend")
    told = said()
    assert "the run continues with train.steps: 2 there, 5 here" in told
    assert "the run continues with optim.lr: 0.001 there, 0.002 here" in told
    assert "the schedule goes on at step 2 of 5: learning rate" in told
    found = rates(tmp_path / "run")
    assert sorted(found) == [1, 2, 3, 4, 5]
    for step in (3, 4, 5):
        assert found[step] == pytest.approx(lr_at(step - 1, longer.optim, 5))


def test_moments_and_position_go_on_and_the_next_start_is_an_ordinary_one(tiny_run, tmp_path, said):
    """With only the length changed, in steps that the schedule does not see, the run is the longer one."""
    constant = dict(lr=1e-3, min_lr=1e-3, ema_decay=0.9)
    train(tiny_run(tmp_path / "whole", train=SHORT | dict(steps=4), optim=constant))
    train(tiny_run(train=SHORT, optim=constant))
    train(tiny_run(train=SHORT | dict(steps=4), optim=constant), "extend")
    parts = [last(checkpoints_of(tmp_path / name)) for name in ("run", "whole")]
    one, other = (read_manifest(part)["files"] for part in parts)
    assert one == other, "to the last bit"
    said()
    train(tiny_run(train=SHORT | dict(steps=4), optim=constant))
    assert "the run continues with" not in said()


def test_another_batch_and_other_samples_are_said_and_other_samples_begin_with_an_epoch(
    tiny_run, digits, tmp_path, said
):
    train(tiny_run(train=SHORT))
    train(tiny_run(train=SHORT | dict(steps=3), data=dict(batch_size=4)), "extend")
    assert "samples per step of task 'digits' (batch size x accumulation x ranks): 8 there, 4 here" in said()
    streams = read_manifest(last(checkpoints_of(tmp_path / "run")))["streams"]
    assert streams["digits"]["samples"] == 2 * 8 + 4
    first = dict(train=str(digits / "train-00000.tar"))
    train(tiny_run(train=SHORT | dict(steps=4), data=first), "extend")
    assert "tasks.digits.data: other shards or another order than before; an epoch of them begins" in said()
    streams = read_manifest(last(checkpoints_of(tmp_path / "run")))["streams"]
    assert streams["digits"]["samples"] == 32 + 8, "the second epoch of 32 samples"


def test_a_score_of_other_samples_is_not_the_one_to_beat(tiny_run, digits, tmp_path, said):
    train(tiny_run(train=SHORT))
    root = checkpoints_of(tmp_path / "run")
    forge(root / "step_00000002/manifest.json", lambda facts: facts["progress"].update(best=2.0))
    train(tiny_run(train=SHORT | dict(steps=3)), "extend")
    assert read_manifest(last(root))["progress"]["best"] == 2.0
    train(tiny_run(train=SHORT | dict(steps=4), data=dict(val=str(digits / "val-00000.tar"))), "extend")
    assert "the best score of before does not count" in said()
    assert read_manifest(last(root))["progress"]["best_step"] == 4


@pytest.mark.parametrize(
    "changed",
    [
        dict(merging=dict(policy="dtem", reduction=4)),
        dict(backbone=dict(proportional_attention="never")),
        dict(data=dict(limit_val=8)),
        dict(data=dict(exif_rotation=False)),
    ],
    ids=str,
)
def test_a_score_by_other_rules_is_not_the_one_to_beat(tiny_run, tmp_path, said, changed):
    train(tiny_run(train=SHORT))
    root = checkpoints_of(tmp_path / "run")
    forge(root / "step_00000002/manifest.json", lambda facts: facts["progress"].update(best=2.0))
    train(tiny_run(train=SHORT | dict(steps=3), **changed), "extend")
    assert "the best score of before does not count" in said()
    assert read_manifest(last(root))["progress"]["best_step"] == 3


def test_patience_begins_anew_with_the_scores(tiny_run, tmp_path, said):
    """The step of the old best is not the one to count from."""
    settings = dict(steps=3, log_every=1, eval_every=1, patience=2)
    train(tiny_run(train=settings))
    root = checkpoints_of(tmp_path / "run")
    progress = dict(best=2.0, best_step=1)
    forge(last(root) / "manifest.json", lambda facts: facts["progress"].update(progress))
    train(tiny_run(train=settings | dict(steps=4), data=dict(limit_val=8)), "extend")
    assert "the best score of before does not count" in said()
    assert step_of(last(root)) == 4


def test_a_limit_that_may_change_forgets_the_best_score_too(tiny_run, tmp_path, said):
    """Also where a run just goes on."""
    settings = SHORT | dict(steps=4, save_every=2)
    train(tiny_run(train=settings))
    root = checkpoints_of(tmp_path / "run")
    forge(root / "step_00000002/manifest.json", lambda facts: facts["progress"].update(best=2.0))
    shutil.rmtree(root / "step_00000004")
    train(tiny_run(train=settings, data=dict(limit_val=8)))
    assert "the best score of before does not count" in said()
    assert read_manifest(last(root))["progress"]["best_step"] == 4


@pytest.mark.parametrize(
    ("data", "seed", "epoch"), [({}, 7, 80), (dict(shuffle_shards=1), 42, 80), (dict(overfit=64), 42, 64)]
)
def test_samples_in_another_order_begin_with_an_epoch(tiny_run, tmp_path, said, data, seed, epoch):
    """Else some would come twice in their epoch, and others not at all."""
    train(tiny_run(train=SHORT))
    train(replace(tiny_run(train=SHORT | dict(steps=3), data=data), seed=seed), "extend")
    assert "tasks.digits.data: other shards or another order than before; an epoch of them begins" in said()
    streams = read_manifest(last(checkpoints_of(tmp_path / "run")))["streams"]
    assert streams["digits"]["samples"] == epoch + 8


def test_a_run_that_is_past_its_new_end_is_refused(tiny_run, tmp_path):
    train(tiny_run(train=SHORT | dict(steps=3)))
    with pytest.raises(CheckpointError, match=r"has 3 steps and is to end after 2; give train.steps above 3"):
        train(tiny_run(train=SHORT), "extend")


def test_extend_begins_a_run_where_there_is_none_and_refuses_another_model(tiny_run, tmp_path):
    train(tiny_run(train=SHORT), "extend")
    deeper = dict(patch_size=8, embed_dim=24, depth=2, num_heads=2, mlp_ratio=2)
    with pytest.raises(CheckpointError, match="is of another model"):
        train(tiny_run(train=SHORT, backbone=dict(options=deeper)), "extend")
