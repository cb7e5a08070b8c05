"""What a run may not be continued with is named, and what does not matter passes."""

import fnmatch
from dataclasses import replace

import pytest
import torch
from checkpointkit import BATCH, forge, make_engine, save
from standin import StandinModel, standin_config

from pipeline.config.load import to_saved
from pipeline.errors import CheckpointError
from pipeline.train import checkpoint, continuing


def shapes(model) -> dict:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_another_model_names_the_parameters(tmp_path):
    engine = make_engine()
    save(engine, tmp_path, 1)
    loaded = checkpoint.load_latest(engine, tmp_path)
    continuing.check_model(loaded, shapes(StandinModel()))
    other = StandinModel()
    other.tasks["a"] = torch.nn.Linear(12, 7)
    del other.backbone.blocks[1].metric
    with pytest.raises(CheckpointError) as caught:
        continuing.check_model(loaded, shapes(other))
    assert "backbone.blocks.1.metric.bias: (3,) there, absent here" in str(caught.value)
    assert "tasks.a.bias: (5,) there, (7,) here" in str(caught.value)


def test_an_older_checkpoint_with_the_state_of_generators_is_continued_without_it(tmp_path):
    """They are seeded by the number of the step; whatever the file holds is not read."""
    engine = make_engine()
    folder = save(engine, tmp_path, 1)
    (folder / "rng.safetensors").write_bytes(b"of another version")
    forge(
        folder / "manifest.json",
        lambda facts: facts["files"].update({"rng.safetensors": {"sha256": "0" * 64, "bytes": 18}}),
    )
    loaded = checkpoint.load_latest(engine, tmp_path)
    assert continuing.check_run(loaded, standin_config(), BATCH) == {}
    continuing.check_model(loaded, shapes(StandinModel()))


def test_another_run_names_the_fields_and_harmless_ones_pass(tmp_path):
    engine = make_engine()
    save(engine, tmp_path, 1)
    loaded, config = checkpoint.load_latest(engine, tmp_path), standin_config()
    assert continuing.check_run(loaded, config, BATCH) == {}
    elsewhere = replace(
        config, output="elsewhere", engine=replace(config.engine, type="deepspeed", zero_stage=3)
    )
    assert len(continuing.check_run(loaded, elsewhere, BATCH)) == 3
    task = config.tasks["a"]
    closer = replace(task, data=replace(task.data, augment=replace(task.data.augment, crop_pct=0.9)))
    assert len(continuing.check_run(loaded, replace(config, tasks={"a": closer}), BATCH)) == 1, (
        "which training does not see"
    )
    with pytest.raises(
        CheckpointError,
        match=r"another run[\s\S]*optim.lr: 0.01 there, 0.02 here[\s\S]*seed: 42 there, 7 here",
    ):
        continuing.check_run(loaded, replace(config, seed=7, optim=replace(config.optim, lr=2e-2)), BATCH)
    with pytest.raises(CheckpointError, match="samples per step"):
        continuing.check_run(loaded, config, {"a": 16})
    with pytest.raises(CheckpointError) as caught:
        continuing.check_run(loaded, config, {"a": 6}, world_size=2)
    assert (
        "8 there, 6 here; with 2 ranks give tasks.a.data.batch_size 1 with 4 or 2 with 2 or 4 with 1 for its "
        "accumulation (engine.accumulation x tasks.a.accumulation)" in str(caught.value)
    )
    with pytest.raises(CheckpointError, match="3 ranks cannot share them evenly: start 1, 2, 4, 8 ranks"):
        continuing.check_run(loaded, config, {"a": 6}, world_size=3)
    older = {name: value for name, value in loaded.facts["config"].items() if name != "mixing"}
    assert (
        continuing.check_run(
            replace(loaded, facts=loaded.facts | {"config": older, "digest": ""}), config, BATCH
        )
        == {}
    )


MATTER = (
    *("seed", "engine.precision", "merging.*", "mixing.*", "balancing.*", "objective.*", "step.*", "optim.*"),
    *("backbone.name", "backbone.img_size", "backbone.frames", "backbone.tubelet"),
    *("backbone.options", "backbone.drop_path", "backbone.peers"),
    "backbone.proportional_attention",
    *("train.mode", "train.epochs", "train.steps", "train.max_steps", "train.best", "train.alternate_period"),
    "train.reduction_range",
    *("tasks.a.type", "tasks.a.head", "tasks.a.weight", "tasks.a.share", "tasks.a.merging", "tasks.a.frozen"),
    *("tasks.a.data.schema", "tasks.a.data.img_size", "tasks.a.data.views", "tasks.a.data.shuffle_shards"),
    *("tasks.a.data.train_weights", "tasks.a.data.exif_rotation", "tasks.a.data.caption_field"),
    *("tasks.a.data.label_field", "tasks.a.data.decode", "tasks.a.data.frames", "tasks.a.data.stride"),
    *("tasks.a.data.overfit", "tasks.a.data.tokenizer", "tasks.a.data.augment.*"),
)
"""Fields with which a run is another one: each changes what is learned, or from which samples."""


def fields(plain, path=""):
    if isinstance(plain, dict) and plain:
        for key, value in plain.items():
            yield from fields(value, f"{path}.{key}" if path else key)
    else:
        yield path


def test_each_field_is_harmless_or_makes_another_run():
    """A new one has to be thought of."""
    of_data = {"tasks.*.data.augment.crop_pct", "tasks.*.data.augment.crop_mode"}
    for field in fields(to_saved(standin_config())):
        lists = [
            [pattern for pattern in patterns if fnmatch.fnmatch(field, pattern)]
            for patterns in (continuing.HARMLESS, MATTER)
        ]
        assert bool(lists[0]) != bool(lists[1]) or set(lists[0]) & of_data, field


def test_limits_of_waiting_may_change(tmp_path):
    """A run that the watchdog has ended may need longer ones."""
    engine, config = make_engine(), standin_config()
    save(engine, tmp_path, 1)
    longer = replace(config, engine=replace(config.engine, timeout=999.0, start_timeout=999.0))
    loaded = checkpoint.load_latest(engine, tmp_path)
    assert len(continuing.check_run(loaded, longer, BATCH)) == 2


def test_the_numbers_of_ranks_that_are_proposed_serve_all_tasks(tmp_path):
    ways = continuing._ways("a", {"a": 8, "b": 12}, standin_config(), 3)
    assert "start 1, 2, 4 ranks" in ways
