"""What a run refuses before its first step."""

import pytest
from tinyrun import tiny_tasks_plain

from pipeline.config.load import from_plain
from pipeline.errors import ConfigError
from pipeline.train.loop import train
from pipeline.train.setup import build_run


def test_shards_with_more_classes_than_the_head_are_refused(tiny_run, tmp_path):
    config = tiny_run()
    config.tasks["digits"].head["num_classes"] = 3
    with pytest.raises(ConfigError, match="tasks.digits: the shards have 10 classes, the head has 3; give head.num_classes=10"):
        train(config)


def test_each_task_is_held_against_its_own_shards(digits, tmp_path):
    plain = tiny_tasks_plain(digits, tmp_path / "run")
    plain["tasks"]["masks"]["head"] = plain["tasks"]["masks"]["head"] | {"num_classes": 4}
    with pytest.raises(ConfigError, match="tasks.masks: the shards have 11 mask classes, the head has 4"):
        train(from_plain(plain))


def test_streams_that_no_head_reads_are_told_together(digits, tmp_path):
    plain = tiny_tasks_plain(digits, tmp_path / "run")
    plain["tasks"]["masks"]["data"] |= {"schema": "classification", "augment": {}}
    plain["tasks"]["digits"]["data"] |= {"schema": "segmentation", "augment": {}}
    with pytest.raises(ConfigError) as caught:
        train(from_plain(plain))
    for task, given, read in (("masks", "ClassificationTargets", "MaskTargets"), ("digits", "MaskTargets", "ClassificationTargets")):
        assert f"tasks.{task}: its stream gives {given}, which no head reads: its own reads {read}" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_frozen_task_has_no_stream_and_is_evaluated(digits, tmp_path):
    plain = tiny_tasks_plain(digits, tmp_path / "run")
    plain["tasks"]["masks"] |= {"frozen": True, "data": plain["tasks"]["masks"]["data"] | {"train": None}}
    run = build_run(from_plain(plain), "none")
    assert (list(run.streams), list(run.loaders)) == (["digits", "captions"], ["digits", "captions", "masks"])
    assert {group["owner"] for group in run.groups} == {None, "digits", "captions"}


@pytest.mark.parametrize("inside", [".", "deeper"])
def test_an_output_that_cannot_be_made_is_found_before_training(tiny_run, tmp_path, inside):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made or written to"):
        train(tiny_run(tmp_path / "file" / inside))


def test_too_few_samples_for_the_ranks_of_zero_3_are_found_before_training(tiny_run, monkeypatch):
    for name, value in dict(RANK="0", WORLD_SIZE="4").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="eval_batch_size is 10 and there are 25 .* give 6"):
        train(tiny_run(engine=dict(type="deepspeed", zero_stage=3), optim=dict(ema_decay=0.0)))
