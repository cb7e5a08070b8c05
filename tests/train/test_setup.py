"""What a run refuses before its first step."""

import json
from dataclasses import replace

import pytest
from checkpointkit import forge
from derived import write_derived
from tinyrun import tiny_tasks_plain

from pipeline.config.load import from_plain
from pipeline.data.shards.find import load_manifest
from pipeline.errors import CheckpointError, ConfigError
from pipeline.train.loop import train
from pipeline.train.setup import build_run


def test_shards_with_more_classes_than_the_head_are_refused(tiny_run, tmp_path):
    config = tiny_run()
    config.tasks["digits"].head["num_classes"] = 3
    with pytest.raises(
        ConfigError,
        match="tasks.digits: the shards have 10 classes, the head has 3; give head.num_classes=10",
    ):
        train(config)


def test_each_task_is_held_against_its_own_shards(digits, tmp_path):
    plain = tiny_tasks_plain(digits, tmp_path / "run")
    plain["tasks"]["masks"]["head"] = plain["tasks"]["masks"]["head"] | {"num_classes": 4}
    with pytest.raises(ConfigError, match="tasks.masks: the shards have 11 classes, the head has 4"):
        train(from_plain(plain))


def test_streams_that_no_head_reads_are_told_together(digits, tmp_path):
    plain = tiny_tasks_plain(digits, tmp_path / "run")
    plain["tasks"]["masks"]["data"] |= {"schema": "classification", "augment": {}}
    plain["tasks"]["digits"]["data"] |= {"schema": "segmentation", "augment": {}}
    with pytest.raises(ConfigError) as caught:
        train(from_plain(plain))
    for task, given, read in (
        ("masks", "ClassificationTargets", "MaskTargets"),
        ("digits", "MaskTargets", "ClassificationTargets"),
    ):
        assert f"tasks.{task}: its stream gives {given}, which no head reads: its own reads {read}" in str(
            caught.value
        )
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


def test_a_run_is_not_evaluated_on_what_it_is_trained_on(digits, tmp_path):
    plain = tiny_tasks_plain(digits, tmp_path / "run")
    plain["tasks"]["masks"]["data"] |= {"val": f"{digits}/train-{{00000..00001}}.tar"}
    with pytest.raises(
        ConfigError,
        match="tasks.masks.data.val holds shards that are trained on: .*train-00000.tar and 1 more",
    ):
        train(from_plain(plain))
    assert not (tmp_path / "run").exists()
    plain["tasks"]["masks"]["data"] |= {"allow_overlap": True}
    assert build_run(from_plain(plain), "none").loaders["masks"].num_samples == 64


def test_outputs_that_no_sample_teaches_are_told_once(digits, tmp_path, caplog):
    plain = tiny_tasks_plain(digits, tmp_path / "run")
    plain["tasks"]["digits"]["head"] = plain["tasks"]["digits"]["head"] | {"num_classes": 1000}
    build_run(from_plain(plain), "none")
    (line,) = [record.getMessage() for record in caplog.records if "num_classes" in record.getMessage()]
    assert (
        "tasks.digits.head.num_classes is 1000 and the shards have 10 classes: 990 outputs have no sample"
        in line
    )


def with_classes(digits, folder, names):
    """The same shards with other names for the classes."""
    folder.mkdir()
    write_derived(folder, replace(load_manifest(str(digits)), classes=tuple(names)), str(digits))
    return str(folder)


def test_a_frozen_head_resumes_on_the_classes_that_it_knows(digits, tmp_path):
    plain = tiny_tasks_plain(digits, tmp_path / "run", train={"steps": 1}, optim={"warmup_steps": 0})
    frozen = plain["tasks"].pop("digits")
    plain["tasks"] = {
        "captions": plain["tasks"]["captions"],
        "digits": frozen | {"frozen": True, "data": frozen["data"] | {"train": None}},
    }
    train(from_plain(plain))
    (manifest,) = (tmp_path / "run" / "checkpoints").glob("step_*/manifest.json")
    known = json.loads(manifest.read_text())["classes"]
    assert known == {"captions": [], "digits": list(load_manifest(str(digits)).classes)}
    data = plain["tasks"]["digits"]["data"]
    data["val"] = with_classes(digits, tmp_path / "turned", known["digits"][::-1])
    with pytest.raises(CheckpointError, match="classes of task 'digits' are in another order"):
        build_run(from_plain(plain), "auto")
    data["val"] = with_classes(digits, tmp_path / "strange", ["strange", *known["digits"][1:]])
    with pytest.raises(ConfigError, match="1 of its 10 classes .'strange'. are not among"):
        build_run(from_plain(plain), "auto")
    forge(manifest, lambda facts: facts.pop("classes"))
    assert build_run(from_plain(plain), "auto").progress.step == 1, (
        "a checkpoint of before does not say its classes"
    )
