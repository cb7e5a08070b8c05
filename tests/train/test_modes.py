"""Every task, in every training mode, through the whole of a run: data, objective, engine, checkpoint, scores."""

import json

import pytest
from segheads import HEADS
from tinycoca import SPEC, TOKENIZER
from tinyrun import tiny_plain

from launch.restore import read_run
from pipeline.config.load import from_plain
from pipeline.config.schema import RunConfig
from pipeline.model import TASKS, build_model
from pipeline.train.loop import train
from pipeline.train.rng import seed_everything

HEAD_AND_DATA = {
    "captioning": ({"model": SPEC, "tokenizer": TOKENIZER}, {"schema": "captioning", "tokenizer": TOKENIZER, "augment": {"crop_pct": 1.0}}),
    "classification": ({"num_classes": 10}, {"schema": "classification", "augment": {"crop_pct": 1.0}}),
    "segmentation": ({"num_classes": 11} | HEADS["segmenter"], {"schema": "segmentation", "augment": {"max_class_share": 1.0}}),
}
MODES = {
    "backbone": {"backbone", "head"},
    "modular": {"metric"},
    "joint": {"backbone", "head", "metric"},
    "end_to_end": {"backbone", "head", "metric"},
}
"""Mode -> what it changes."""


def config(task: str, mode: str, objective: str, digits, output) -> RunConfig:
    plain = tiny_plain(digits, output, train=dict(mode=mode, steps=4, log_every=2), optim=dict(ema_decay=0.0, warmup_steps=0))
    head, data = HEAD_AND_DATA[task]
    shards = dict(train=str(digits), val=str(digits), img_size=32, batch_size=8, eval_batch_size=5, workers=0)
    plain["tasks"] = {"digits": dict(type=task, head=head, data=shards | data)}
    plain["train"] |= dict(alternate_period=2) if mode == "end_to_end" else {}
    return from_plain(plain | dict(objective=dict(type=objective)))


def part(name: str) -> str:
    return "metric" if ".metric." in name else "backbone" if name.startswith("backbone.") else "head"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("task", TASKS.names())
def test_a_mode_changes_what_it_says_and_nothing_else(task, mode, digits, tmp_path):
    objective = "merge_cost" if mode in ("modular", "end_to_end") else "supervised"
    run = config(task, mode, objective, digits, tmp_path / "run")
    train(run)
    seed_everything(run.seed, "weights")  # as the run started
    before, after = build_model(run).state_dict(), read_run(tmp_path / "run").tensors
    assert {part(name) for name, tensor in before.items() if not tensor.equal(after[name])} == MODES[mode]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert f"val/digits/{TASKS.get(task).main_metric}" in lines[-1]
