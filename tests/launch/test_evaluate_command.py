import json
import shutil
from dataclasses import replace

import pytest
import torch
from checkpointkit import forge
from damage import damaged
from derived import write_derived

from launch import cli
from launch.saved.reductions import parse_reduction
from launch.saved.run import build, read_run
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.table import ShardTable
from pipeline.errors import CheckpointError, ConfigError
from pipeline.model import build_model
from pipeline.rng import seed_everything


def scores(dtem, tmp_path, *argv) -> dict:
    dtem("evaluate", *argv, "--out", tmp_path / "scores.json")
    return json.loads((tmp_path / "scores.json").read_text())


def test_the_saved_run_scores_what_training_said(trained, dtem, tmp_path):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    said = {
        name.removeprefix("val/digits/"): value
        for line in lines
        for name, value in line.items()
        if name.startswith("val/")
    }
    result = scores(dtem, tmp_path, trained)
    found = {name: result["scores"]["digits"][name] for name in said}
    assert result["weights"] == "ema" and found == pytest.approx(said) and said["samples"] == 25


def test_averaged_weights_are_announced(trained, dtem):
    assert "averaged (EMA) weights" in dtem("evaluate", trained)


@pytest.mark.parametrize("policy", ["random", "tome", "dtem", "dtem_untrained"])
def test_without_reduction_every_policy_is_the_unmerged_model(trained, dtem, tmp_path, policy):
    whole = scores(dtem, tmp_path, trained, "--policy", "none")["scores"]["digits"]
    assert scores(dtem, tmp_path, trained, "--policy", policy, "--reduction", 0)["scores"]["digits"] == whole


def test_samples_that_are_not_in_the_scores_are_told_and_are_a_failure(trained, digits, dtem, tmp_path):
    shards = damaged(digits, tmp_path / "shards", {("val-00000.tar", 0): "jpg", ("val-00000.tar", 5): "cls"})
    argv = (
        "evaluate",
        trained,
        "--cfg-options",
        f"tasks.digits.data.val={shards}",
        "--out",
        tmp_path / "scores.json",
    )
    assert "digits: 2 of 25 samples could not be read, and are not in these scores" in dtem(*argv, code=1)
    result = json.loads((tmp_path / "scores.json").read_text())
    assert result["missing"] == {"digits": 2} and result["scores"]["digits"]["samples"] == 23
    dtem(*argv, "--allow-missing")
    assert scores(dtem, tmp_path, trained)["missing"] == {}


def test_a_checkpoint_that_lies_alone_is_enough(trained, dtem, tmp_path):
    (folder,) = (trained / "checkpoints").glob("step_*")
    shutil.copytree(folder, tmp_path / "alone")
    assert scores(dtem, tmp_path, tmp_path / "alone")["scores"] == scores(dtem, tmp_path, trained)["scores"]


def test_the_training_split_is_there_too(trained, dtem, tmp_path):
    assert scores(dtem, tmp_path, trained, "--split", "train")["scores"]["digits"]["samples"] == 80


def test_models_of_one_run_share_its_weights(trained):
    run = read_run(trained)
    one, other = build(run, "tome"), build(run, "dtem")
    assert one.backbone.pos_embed.data_ptr() == other.backbone.pos_embed.data_ptr()


def test_an_untrained_control_differs_in_its_embedding_only(trained):
    run = read_run(trained)
    learned, drawn, again = (
        build(run),
        build(run, "dtem_untrained", seed=1),
        build(run, "dtem_untrained", seed=1),
    )
    for name, tensor in learned.state_dict().items():
        same = torch.equal(tensor, drawn.state_dict()[name])
        assert same == (not name.endswith("metric.weight")) or name.endswith("metric.bias"), name
        assert torch.equal(again.state_dict()[name], drawn.state_dict()[name])


def test_an_untrained_control_starts_where_training_started(trained):
    run = read_run(trained)
    seed_everything(run.config.seed, "weights")
    start, control = build_model(run.config).state_dict(), build(run, "dtem_untrained").state_dict()
    metric = [name for name in start if ".metric." in name]
    assert len(metric) == 6 and all(torch.equal(start[name], control[name]) for name in metric)


def test_a_run_gives_config_and_model(trained):
    run = read_run(trained, "last")
    config, model = run.config, build(run)
    assert config.merging.policy == "dtem" and not model.training
    assert model.backbone.schedule((4, 4)) == (2, 2, 2)


def test_wrong_folders_and_names_say_the_way_out(trained, tmp_path):
    with pytest.raises(CheckpointError, match="not the folder of a run"):
        read_run(tmp_path)
    with pytest.raises(
        CheckpointError, match="no checkpoint '../x'; give best, last or one of step_00000004"
    ):
        read_run(trained, "../x")
    with pytest.raises(ConfigError, match="policy 'tome' has no embedding"):
        build(read_run(trained), "tome_untrained")


def test_a_damaged_checkpoint_is_refused(trained, dtem, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    (weights,) = (tmp_path / "run").glob("checkpoints/step_*/model.safetensors")
    older = shutil.copytree(weights.parent, weights.parent.with_name("step_00000002"))
    forge(older / "manifest.json", lambda facts: facts.update(step=2))
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "sha256 is not the manifest's; another one of this run: --checkpoint step_00000002" in dtem(
        "evaluate", tmp_path / "run", code=2
    )
    dtem("evaluate", tmp_path / "run", "--checkpoint", older.name)


@pytest.mark.parametrize(
    "change", [{"config": None}, {"config": {"backbone": {}}}, {"config": "x"}, {"step": None}]
)
def test_a_strange_manifest_is_refused_with_a_typed_error(trained, dtem, tmp_path, change):
    shutil.copytree(trained, tmp_path / "run")
    (path,) = (tmp_path / "run").glob("checkpoints/step_*/manifest.json")

    def changed(facts):
        facts |= change
        for key in [key for key, value in facts.items() if value is None]:
            del facts[key]

    forge(path, changed)
    assert "dtem evaluate: " in dtem("evaluate", tmp_path / "run", code=2)


@pytest.mark.parametrize("text, meant", [("8", 8), ("0.9", 0.9), ("(8,-1)", (8, -1)), ("[3,2]", [3, 2])])
def test_reductions_in_all_forms(text, meant):
    assert parse_reduction(text) == meant


@pytest.mark.parametrize("text", ["many", "true", "{}", "none"])
def test_what_is_no_reduction_is_refused(text):
    with pytest.raises(ConfigError, match="is not an integer, a keep rate"):
        parse_reduction(text)


def test_a_reduction_that_is_too_large_names_the_largest(trained, dtem):
    assert "largest even reduction is 5" in dtem("evaluate", trained, "--reduction", 9, code=2)


def test_shards_with_more_classes_than_the_head_are_refused(trained, digits, dtem, tmp_path):
    classes = [str(number) for number in range(11)]
    write_derived(tmp_path, replace(load_manifest(str(digits)), classes=tuple(classes)), str(digits))
    option = f"tasks.digits.data.val={tmp_path}"
    assert "the shards have 11 classes, the head has 10" in dtem(
        "evaluate", trained, "--cfg-options", option, code=2
    )
    assert "the shards have 11 classes" in dtem(
        "sweep", trained, "--reduction", "1", "--cfg-options", option, code=2
    )


def renamed(digits, folder, rename) -> str:
    """The same shards, whose classes have other names."""
    folder.mkdir()
    manifest = load_manifest(str(digits))
    write_derived(folder, replace(manifest, classes=tuple(rename(manifest.classes))), str(digits))
    return f"tasks.digits.data.val={folder}"


def test_shards_with_other_class_names_are_read_by_name_or_refused(trained, digits, dtem, tmp_path):
    plain = scores(dtem, tmp_path, trained)
    turned = scores(
        dtem,
        tmp_path,
        trained,
        "--cfg-options",
        renamed(digits, tmp_path / "turned", lambda names: names[::-1]),
    )
    assert (
        turned["classes"] == plain["classes"]
        and turned["scores"]["digits"]["loss"] != plain["scores"]["digits"]["loss"]
    )
    option = renamed(digits, tmp_path / "strange", lambda names: ["strange", *names[1:]])
    for command in (("evaluate",), ("sweep", "--reduction", "1"), ("visualise", "--num", "1")):
        said = dtem(command[0], trained, *command[1:], "--cfg-options", option, code=2)
        assert (
            "tasks.digits.data.val: 1 of its 10 classes ('strange') are not among those that are trained on"
            in said
        )
    gone = [option, "tasks.digits.data.train=nowhere"]
    assert "'strange'" in dtem("evaluate", trained, "--cfg-options", *gone, code=2), (
        "the checkpoint knows them"
    )
    numbered = renamed(digits, tmp_path / "numbered", lambda names: map(str, range(len(names))))
    assert scores(dtem, tmp_path, trained, "--cfg-options", numbered)["scores"] == plain["scores"]


def test_any_split_of_the_shards_can_be_evaluated(trained, digits, dtem, tmp_path):
    manifest = load_manifest(str(digits))
    held_out = ShardTable.of(
        replace(shard, split="test" if shard.split == "val" else shard.split) for shard in manifest.shards
    )
    write_derived(tmp_path, replace(manifest, shards=held_out), str(digits))
    options = ["--cfg-options", f"tasks.digits.data.val={tmp_path}"]
    asked = scores(dtem, tmp_path, trained, "--split", "test", *options)
    assert asked["split"] == "test" and asked["scores"] == scores(dtem, tmp_path, trained)["scores"]
    assert "has no shard of split 'val': 1 shard names test, 3 shards name train" in dtem(
        "evaluate", trained, *options, code=2
    )
    assert scores(dtem, tmp_path, trained, "--split", "train")["scores"]["digits"]["samples"] == 80
    for command in (("sweep", "--reduction", "1", "--rounds", "0"), ("visualise", "--num", "1")):
        assert "wrote " in dtem(
            command[0], trained, *command[1:], "--split", "test", "--out", tmp_path / "out", *options
        )


def test_shards_that_the_run_was_trained_on_are_not_scored_as_others(trained, digits, dtem):
    option = f"tasks.digits.data.val={digits}/train-00001.tar"
    assert "holds shards that are trained on: " in dtem("evaluate", trained, "--cfg-options", option, code=2)


def test_a_folder_of_shards_is_no_run(digits, capsys):
    assert cli.main(["evaluate", str(digits)]) == 2
    assert f"{digits} is a folder of shards, not of a run" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--policy", "--task"])
def test_a_list_of_nothing_is_refused(option, capsys):
    with pytest.raises(SystemExit):
        cli.main(["sweep", "run", option, " ,"])
    assert "names nothing" in capsys.readouterr().err
