"""Every task, in every training mode, through the whole of a run: data, objective, engine, checkpoint,
scores."""

import json

import pytest
from names import owner_of
from segheads import HEADS
from tinycoca import SPEC, TOKENIZER
from tinyrun import tiny_plain, tiny_tasks_plain

from launch.saved.run import read_run
from pipeline.config.load import from_plain
from pipeline.config.schema import RunConfig
from pipeline.model import TASKS, build_model
from pipeline.rng import seed_everything
from pipeline.train.loop import train

HEAD_AND_DATA = {
    "captioning": (
        {"model": SPEC, "tokenizer": TOKENIZER},
        {"schema": "captioning", "tokenizer": TOKENIZER, "augment": {"crop_pct": 1.0}},
    ),
    "classification": ({"num_classes": 10}, {"schema": "classification", "augment": {"crop_pct": 1.0}}),
    "multi_label": ({"num_classes": 10}, {"schema": "multi_label", "augment": {"crop_pct": 1.0}}),
    "segmentation": (
        {"num_classes": 11} | HEADS["segmenter"],
        {"schema": "segmentation", "augment": {"max_class_share": 1.0}},
    ),
    "video_classification": (
        {"num_classes": 9},
        {"schema": "video_classification", "augment": {"crop_pct": 1.0}},
    ),
}
MODES = {
    "backbone": {"backbone", "head"},
    "heads": {"head"},
    "modular": {"metric"},
    "joint": {"backbone", "head", "metric"},
    "end_to_end": {"backbone", "head", "metric"},
}
"""Mode -> what it changes."""


def config(task: str, mode: str, objective: str, folder, output) -> RunConfig:
    plain = tiny_plain(
        folder, output, train=dict(mode=mode, steps=4, log_every=2), optim=dict(ema_decay=0.0, warmup_steps=0)
    )
    head, data = HEAD_AND_DATA[task]
    shards = dict(train=str(folder), val=str(folder), img_size=32, batch_size=8, eval_batch_size=5, workers=0)
    plain["tasks"] = {"digits": dict(type=task, head=head, data=shards | data)}
    plain["backbone"] |= dict(frames=8) if TASKS.get(task).reads_clips else {}
    plain["train"] |= dict(alternate_period=2) if mode == "end_to_end" else {}
    return from_plain(plain | dict(objective=dict(type=objective)))


def part(name: str) -> str:
    return "metric" if ".metric." in name else "backbone" if name.startswith("backbone.") else "head"


ALONE = [mode if mode == "end_to_end" else pytest.param(mode, marks=pytest.mark.slow) for mode in MODES]
"""The mode with both kinds of steps; the three tasks together are trained in each."""


@pytest.mark.parametrize("mode", ALONE)
@pytest.mark.parametrize("task", TASKS.names())
def test_a_mode_changes_what_it_says_and_nothing_else(task, mode, digits, moving_digits, tmp_path):
    objective = "merge_cost" if mode in ("modular", "end_to_end") else "supervised"
    folder = moving_digits if TASKS.get(task).reads_clips else digits
    run = config(task, mode, objective, folder, tmp_path / "run")
    train(run)
    seed_everything(run.seed, "weights")  # as the run started
    before, after = build_model(run).state_dict(), read_run(tmp_path / "run").tensors
    assert {part(name) for name, tensor in before.items() if not tensor.equal(after[name])} == MODES[mode]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert f"val/digits/{TASKS.get(task).main_metric}" in lines[-1]


EMBEDDINGS = {"shared": {"metric"}, "per_task": {"metric/digits", "metric/captions", "metric/masks"}}
EMBEDDINGS["adapter"] = EMBEDDINGS["shared"] | EMBEDDINGS["per_task"]
"""Where the metric embeddings are that a run of three tasks learns: PART, or PART/TASK."""
OWNED = {"head": {"head/digits", "head/captions", "head/masks"}, "backbone": {"backbone"}}


def place(name: str) -> str:
    return f"{part(name)}/{owner_of(name)}" if owner_of(name) else part(name)


def changed(before, after):
    """The places in which two states differ, among the names of the second."""
    return {
        place(name) for name, tensor in after.items() if not (name in before and tensor.equal(before[name]))
    }


@pytest.mark.parametrize(
    "mode, embedding", [*((mode, "shared") for mode in MODES), ("joint", "per_task"), ("modular", "adapter")]
)
def test_a_mode_changes_what_it_says_of_three_tasks(mode, embedding, digits, tmp_path):
    settings = dict(mode=mode, steps=4, log_every=2) | (
        dict(alternate_period=2) if mode == "end_to_end" else {}
    )
    objective = dict(type="merge_cost") if mode in ("modular", "end_to_end") else dict(type="supervised")
    plain = tiny_tasks_plain(
        digits, tmp_path / "run", train=settings, merging=dict(embedding=embedding), objective=objective
    )
    run = from_plain(plain)
    train(run)
    seed_everything(run.seed, "weights")
    before, after = build_model(run).state_dict(), read_run(tmp_path / "run").tensors
    places = OWNED | {"metric": EMBEDDINGS[embedding]}
    assert changed(before, after) == set().union(*(places[kind] for kind in MODES[mode]))
    assert {"val/digits/top1", "val/captions/CIDEr", "val/masks/mIoU"} <= last_scores(tmp_path / "run").keys()


def last_scores(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return next(line for line in reversed(lines) if any(key.startswith("val/") for key in line))


@pytest.mark.parametrize(
    "embedding, balancing", [*((kind, "fixed") for kind in EMBEDDINGS), ("shared", "gradient_norm")]
)
def test_a_head_is_added_to_a_trained_backbone_and_nothing_else_moves(embedding, balancing, digits, tmp_path):
    """The old tasks are frozen, evaluated as ever, and saved with the new one."""
    merging, balance = dict(embedding=embedding), dict(type=balancing, every=2)
    old = tiny_tasks_plain(digits, tmp_path / "old", merging=merging, balancing=balance, train=dict(steps=3))
    del old["tasks"]["masks"]
    train(from_plain(old))
    new = tiny_tasks_plain(
        digits, tmp_path / "new", merging=merging, balancing=balance, train=dict(mode="heads", steps=3)
    )
    new["backbone"] |= dict(weights=str(tmp_path / "old"))
    for name in old["tasks"]:
        new["tasks"][name] |= dict(frozen=True, data=new["tasks"][name]["data"] | dict(train=None))
    run = from_plain(new)
    train(run)
    before, after = read_run(tmp_path / "old").tensors, read_run(tmp_path / "new").tensors
    kept = {name for name in before if not name.startswith("balancing.")}
    assert kept <= after.keys() and all(after[name].equal(before[name]) for name in kept)
    seed_everything(run.seed, "weights")
    start = build_model(run).state_dict()
    assert changed(start, after) == {"head/masks"}
    scores = [last_scores(tmp_path / name) for name in ("old", "new")]
    assert "val/masks/mIoU" in scores[1]
    assert scores[0] == {key: value for key, value in scores[1].items() if not key.startswith("val/masks/")}
