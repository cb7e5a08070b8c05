"""What a run may not be continued with is named, and what does not matter passes."""

from dataclasses import replace

import pytest
import torch
from checkpointkit import BATCH, forge, make_engine, save
from standin import StandinModel, standin_config

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
    assert continuing.check_run(loaded, standin_config(), BATCH) == []
    continuing.check_model(loaded, shapes(StandinModel()))


def test_another_run_names_the_fields_and_harmless_ones_pass(tmp_path):
    engine = make_engine()
    save(engine, tmp_path, 1)
    loaded, config = checkpoint.load_latest(engine, tmp_path), standin_config()
    assert continuing.check_run(loaded, config, BATCH) == []
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
        == []
    )
