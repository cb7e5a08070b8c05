"""What a config means is said without a GPU, weights or samples, and is what a run then does."""

import json
from pathlib import Path

import pytest
import torch
from tinyrun import tiny_plain, tiny_tasks_plain
from torch.distributed._tools.mem_tracker import MemTracker

from launch.commands.config import EXAMPLES
from launch.configs.describe import in_bytes, short
from launch.configs.differences import ABSENT, differences, leaves
from launch.configs.fake import fake_batch, fake_step
from launch.configs.memory import estimate
from launch.configs.names import KINDS, rows_of
from launch.configs.prepared import prepare
from launch.saved.run import build, read_run
from pipeline.backbone.macs import count_macs
from pipeline.config.load import from_plain, load_config
from pipeline.config.shipped import runs
from pipeline.errors import ConfigError

STEADY = dict(batch_size=32, views=1)


def written(plain, place: Path) -> Path:
    place.write_text(json.dumps(plain))
    return place


def test_what_is_shown_is_what_the_run_was(trained, dtem):
    facts = json.loads(dtem("config", "show", trained / "config.json", "--json"))
    run = read_run(trained)
    config, model = run.config, build(run)
    assert facts["config"] == json.loads((trained / "config.json").read_text()) | {"folder": None}
    assert facts["parameters"] == sum(item.numel() for item in model.parameters())
    assert facts["trained_parts"].keys() == {"base", "metric", "head of digits"}
    task, count = facts["tasks"]["digits"], count_macs(model.backbone)
    assert (task["macs"], task["tokens"][1:]) == (count.total, list(count.tokens))
    assert task["macs_unmerged"] == count_macs(model.backbone, reduction=0).total
    assert (facts["steps"], task["global_batch"]) == (4, config.tasks["digits"].data.batch_size)
    train, val = facts["data"]
    assert (train["num_samples"], val["num_samples"], len(val["classes"])) == (80, 25, 10)


def test_epochs_are_steps_where_the_data_are_there_and_else_not_known(digits, dtem, tmp_path):
    plain = tiny_plain(digits, tmp_path / "run", train=dict(epochs=3, steps=None, mode="joint"))
    place = written(plain, tmp_path / "x.json")
    one, four = (
        json.loads(
            dtem("config", "show", place, "--json", "--world-size", n, "--set", "engine.type=deepspeed")
        )
        for n in (1, 4)
    )
    batch = plain["tasks"]["digits"]["data"]["batch_size"]
    assert one["steps"] == -(-3 * 80 // batch) and four["tasks"]["digits"]["global_batch"] == 4 * batch
    assert four["steps_per_epoch"]["digits"] == pytest.approx(80 / (4 * batch))
    absent = ("--set", f"tasks.digits.data.train={tmp_path / 'none'}")
    said = dtem("config", "show", place, *absent)
    assert "steps       not known without the data" in said and "give an existing folder" in said


def test_the_check_says_no_where_data_or_classes_do_not_fit(digits, dtem, tmp_path, capsys):
    place = written(tiny_plain(digits, tmp_path / "run"), tmp_path / "x.json")
    assert "would start on 1 rank, 6 steps" in dtem("config", "check", place)
    few = dtem("config", "check", place, "--set", "tasks.digits.head.num_classes=3", code=1)
    assert "the shards have 10 classes, the head has 3" in few
    gone = dtem("config", "check", place, "--set", "tasks.digits.data.val=/nowhere", code=1)
    assert "tasks.digits.data.val" in gone and "/nowhere" in gone
    assert "engine.type is 'local'" in dtem("config", "check", place, "--world-size", 2, code=2)


@pytest.mark.parametrize(
    "options",
    [
        ["log.trackers=['nothere']"],
        ["tasks.digits.data.decode=cuda", "tasks.digits.data.augment.pad=0"],
        ["tasks.digits.data.lanes=500"],
        ["tasks.digits.data.val={val}", "tasks.digits.data.train={val}"],
        ["optim.type=muon", "engine.type=deepspeed"],
        ["tasks.digits.data.schema=captioning"],
    ],
)
def test_the_check_refuses_what_training_refuses(digits, dtem, tmp_path, options):
    place = written(tiny_plain(digits, tmp_path / "run"), tmp_path / "x.json")
    changed = ["--cfg-options", *(own.format(val=digits / "val-00000.tar") for own in options)]
    refused = dtem("train", place, *changed, code=2).rpartition("dtem train: ")[2].strip()
    assert refused and not (tmp_path / "run").exists()
    assert refused in dtem("config", "check", place, *changed, code=1)
    assert refused in dtem("train", place, *changed, "--dry-run", code=1)


def test_a_dry_run_says_what_is_evaluated_and_which_fault_is_none(digits, dtem, tmp_path):
    place = written(tiny_plain(digits, tmp_path / "run"), tmp_path / "x.json")
    said = dtem("train", place, "--dry-run", "--overfit", 7)
    assert "digits.train: 7 samples" in said and "digits.val: 7 samples" in said
    assert "engine local, 1 rank\n" in said
    assert "nonsense is no fault" in dtem("train", place, "--dry-run", "--inject", "nonsense", code=2)


def test_what_a_config_has_to_give_is_shown_though_it_has_no_default(digits, dtem, tmp_path):
    place = written(tiny_plain(digits, tmp_path / "run", train=dict(steps=1)), tmp_path / "x.json")
    said = dtem("config", "show", place, "--set", "optim.warmup_steps=0")
    for setting in (
        "backbone.name",
        "tasks.digits.type",
        "tasks.digits.data.schema",
        "output",
        "train.steps",
    ):
        assert f"\n  {setting} = " in said


def test_the_config_of_a_run_differs_from_its_own_only_by_what_was_changed(digits, dtem, tmp_path):
    """Training completes a config by what follows from its model and its optimizer."""
    place = written(tiny_plain(digits, tmp_path / "run"), tmp_path / "x.json")
    dtem("train", place, "--max-steps", 1, "--set", "optim.lr=0.125")
    found = dtem("config", "diff", place, tmp_path / "run", code=1).splitlines()
    assert [line.partition(":")[0] for line in found] == ["train.max_steps", "optim.lr"]


@pytest.mark.parametrize("action", list(EXAMPLES))
def test_the_examples_of_the_help_run(action, dtem):
    _, *words = EXAMPLES[action].split()
    answers = {"diff": 1, "check": 1}  # data/imagenet is not here
    dtem(*words, code=answers.get(action, 0))


def test_configs_and_runs_differ_by_dotted_path(trained, dtem, tmp_path):
    assert dtem("config", "diff", trained, trained / "config.json") == "the same settings\n"
    plain = json.loads((trained / "config.json").read_text())
    plain["optim"]["lr"] = 0.5
    del plain["seed"]  # its default
    from launch import cli

    assert cli.main(["config", "diff", str(trained), str(written(plain, tmp_path / "x.json"))]) == 1


def test_differences_are_the_leaves_that_change_one_config_to_the_other():
    one = {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": {}}
    other = {"a": {"b": 1.0, "c": [1, 3]}, "f": 2, "d": {"x": 1}, "e": {}}
    assert list(differences(one, other)) == [
        ("a.b", 1, 1.0),
        ("a.c", [1, 2], [1, 3]),
        ("d", None, {"x": 1}),
        ("f", ABSENT, 2),
    ]
    assert list(differences(one, one)) == []
    assert list(leaves(one)) == [("a.b", 1), ("a.c", [1, 2]), ("d", None), ("e", {})]


@pytest.mark.parametrize("kind", ["policies", "tasks", "objectives", "configs", "models", "heads"])
def test_names_are_listed_and_filtered(kind, dtem):
    rows = rows_of(kind)
    assert rows and len({name for name, _ in rows}) == len(rows)
    assert kind in ("models", "heads") or all(about for _, about in rows)
    name = rows[0][0]
    assert name in dtem("list", kind, name.upper())
    assert "none contains" in dtem("list", kind, "no such name", code=1)
    assert KINDS.keys() == {"models", "policies", "tasks", "objectives", "heads", "configs"}


def test_each_config_of_the_project_is_listed_and_loads(dtem):
    said = dtem("config", "list")
    for name in runs():
        assert f"dtem::{name} " in said
    assert load_config(said.split()[0]).output


def test_a_dry_run_of_many_ranks_needs_none(digits, dtem, tmp_path):
    place = written(tiny_plain(digits, tmp_path / "run"), tmp_path / "x.json")
    engine = ("--set", "engine.type=deepspeed", "--set", "engine.zero_stage=2")
    said = dtem("train", place, *engine, "--dry-run", "--nodes", 4, "--gpus-per-node", 8, "--fake-step", 3)
    assert "32 ranks" in said and '"stage": 2' in said and "micro-batches of 3 samples of noise" in said
    assert not (tmp_path / "run").exists()
    assert "are 32" in dtem(
        "train", place, "--dry-run", *"--world-size 5 --nodes 4 --gpus-per-node 8".split(), code=2
    )
    assert "go together" in dtem("train", place, "--dry-run", "--nodes", 4, code=2)
    assert "go with --dry-run" in dtem("train", place, "--world-size", 4, code=2)


def test_a_fake_step_runs_every_task_and_changes_what_is_trained(digits):
    prepared = prepare(from_plain(tiny_tasks_plain(digits, "runs/x")))
    before = {name: tensor.clone() for name, tensor in prepared.model.named_parameters()}
    figures = fake_step(prepared, 2)
    assert {name.split("/")[0] for name in figures if "/" in name} == {"digits", "captions", "masks"}
    assert all(torch.tensor(value).isfinite() for value in figures.values())
    changed = {name for name, tensor in prepared.model.named_parameters() if not tensor.equal(before[name])}
    assert changed and all(before[name].requires_grad for name in changed)


def test_no_fake_is_known_of_targets_of_ones_own(digits):
    prepared = prepare(from_plain(tiny_plain(digits, "runs/x")))
    prepared.model.tasks["digits"].reads = int
    with pytest.raises(ConfigError, match="reads int"):
        fake_batch(prepared, "digits", 1)


@pytest.mark.parametrize("mode", ["backbone", "joint"])
def test_the_estimate_of_memory_is_near_the_measured_peak_of_a_step(digits, mode):
    """On the CPU, where a tracker sees each storage that torch makes. The step's own temporaries are not in
    the estimate, so the peak is larger, by a fifth at most."""
    plain = tiny_plain(digits, "runs/x", train=dict(mode=mode))
    if mode == "backbone":
        # the tracker takes no frozen parameters
        plain["merging"] = dict(policy="tome", reduction=2)
    plain["tasks"]["digits"]["data"] |= STEADY
    memory, fresh = estimate(prepare(from_plain(plain))), prepare(from_plain(plain))
    tracker = MemTracker()
    tracker.track_external(fresh.model)
    with tracker:
        fake_step(fresh, STEADY["batch_size"])
    measured = {
        str(part): size for part, size in next(iter(tracker.get_tracker_snapshot("peak").values())).items()
    }
    expected = memory.weights + memory.gradients + memory.activations["digits"]
    assert expected <= measured["Total"] * 1.02 and measured["Total"] <= 1.2 * expected + memory.moments


def test_ranks_divide_what_the_engine_divides(digits):
    def of(stage, ranks, kind="deepspeed"):
        plain = tiny_plain(digits, "runs/x", engine=dict(type=kind, zero_stage=stage))
        plain["optim"]["ema_decay"] = 0.0
        return estimate(prepare(from_plain(plain), ranks))

    one, zero1, zero2, zero3, fsdp = of(1, 1), of(1, 4), of(2, 4), of(3, 4), of(1, 4, "fsdp")
    assert (zero1.weights, zero1.gradients, zero1.moments) == (one.weights, one.gradients, one.moments // 4)
    assert (zero2.weights, zero2.gradients) == (one.weights, one.gradients // 4)
    assert zero3.weights == fsdp.weights == one.weights // 4
    assert one.activations == zero3.activations and one.total > zero1.total > zero2.total > zero3.total


def test_figures_have_three_digits_and_no_exponent():
    assert [short(n) for n in (999, 1234, 999_600, 31_745_000_000, 1_040_000_000_000)] == [
        "999",
        "1.23 k",
        "1000 k",
        "31.7 G",
        "1040 G",
    ]
    assert in_bytes(1010 << 20) == "1010 MiB" and in_bytes(438 << 20) == "438 MiB"
