"""Three tasks in two DeepSpeed processes, held against one local process with the same samples in each
step."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from damage import damaged
from deepspeed_launch import launch_runs, without_key_bias
from scores import scored_again
from tinyrun import CONTINUOUS, SEGMENTER, tiny_tasks_plain

from pipeline.config.load import from_plain
from pipeline.train.loop import train
from pipeline.train.storage import Checkpoint, read_checkpoint

STEPS, SAVED = 6, 3
TASKS = {"digits": 8, "captions": 4, "masks": 4}
"""Task -> samples of a step that holds it."""
MIXTURES: dict[str, dict[str, Any]] = {
    "all": dict(
        merging=dict(embedding="adapter", adapter_rank=2), balancing=dict(type="gradient_norm", every=2)
    ),
    "sampled": dict(
        mixing=dict(mode="sampled"),
        merging=dict(embedding="per_task"),
        balancing=dict(type="uncertainty", every=1),
    ),
}
DIVIDED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
WHOLE: dict[str, dict[str, Any]] = {
    "stage1": dict(zero_stage=1),
    "stage3": dict(zero_stage=3, deepspeed=DIVIDED),
}
"""Engines that run all steps."""
SEED = 33
"""With which `sampled` draws masks, masks, captions, digits, captions, masks."""
HOLES = {(f"train-0000{shard}.tar", sample): "jpg" for shard in range(3) for sample in (1, 6, 11)}
HOLES |= {("train-00000.tar", 3): "json", ("train-00001.tar", 3): "seg.png", ("train-00002.tar", 3): "cls"}
HOLES |= {("val-00000.tar", sample): "jpg" for sample in range(5, 10)} | {("val-00000.tar", 1): "json"}
"""What cannot be read in some shards; of evaluation a whole batch of one rank."""
CONTINUED: dict[str, dict[str, Any]] = {"all": dict(zero_stage=2), "sampled": dict(zero_stage=0)}
"""Engines that continue what one process has saved."""


def plain_of(digits: Path, output: Path, mixture: str, *, processes: int, **engine: Any) -> dict[str, Any]:
    """Without what is drawn by rank: dropout and drop path."""
    sections, decode_head = MIXTURES[mixture], cast(Any, SEGMENTER["decode_head"])
    plain = tiny_tasks_plain(
        digits,
        output,
        backbone=dict(drop_path=0.0),
        train=dict(steps=STEPS, log_every=1, save_every=SAVED, keep_checkpoints=5),
        optim=dict(weight_decay=0.05),
        engine=dict(precision="fp32", **engine),
        tasks=dict(masks=dict(head=SEGMENTER | dict(decode_head=decode_head | dict(dropout_ratio=0.0)))),
        **sections | dict(merging=CONTINUOUS | sections["merging"]),
    )
    for name, task in plain["tasks"].items():
        task["data"] |= dict(batch_size=TASKS[name] // processes)
    return plain | dict(seed=SEED)


@pytest.fixture(scope="module")
def runs(digits, tmp_path_factory) -> Path:
    """Beside one launch of two processes: the same by one process, and by one that continues what the two
    have saved."""
    folder, plan = tmp_path_factory.mktemp("tasks"), []
    for mixture in MIXTURES:
        saved = (
            train(from_plain(plain_of(digits, folder / mixture / "one", mixture, processes=1)), "none")
            / part_way()
        )
        for name, engine in (WHOLE | {"continued": CONTINUED[mixture]}).items():
            plain = plain_of(
                digits, folder / mixture / name, mixture, processes=2, type="deepspeed", **engine
            )
            plan.append((plain, "none" if name in WHOLE else str(saved)))
    shards = damaged(digits, tmp_path_factory.mktemp("shards") / "holed", HOLES)
    train(from_plain(plain_of(shards, folder / "holed" / "one", "all", processes=1)), "none")
    plan.append(
        (
            plain_of(
                shards, folder / "holed" / "two", "all", processes=2, type="deepspeed", **WHOLE["stage3"]
            )
            | dict(log=dict(pictures=3, trackers=[])),
            "none",
        )
    )
    launch_runs(plan, folder, imports=["open_clip", "tasks.mmseg_bridge.heads"])
    for mixture in MIXTURES:
        plain = plain_of(digits, folder / mixture / "again", mixture, processes=1)
        train(from_plain(plain), str(folder / mixture / "stage3" / part_way()))
    return folder


def part_way(step: int = SAVED) -> str:
    return f"checkpoints/step_{step:08d}"


def at_the_end(folder: Path) -> Checkpoint:
    return read_checkpoint(folder / part_way(STEPS))


def lines(folder: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))


def figures(line: Mapping[str, Any], *names: str) -> dict[str, float]:
    """Without those that are n/a."""
    return {
        name: value
        for name, value in line.items()
        if value is not None and (name.startswith(names) or name.endswith(names))
    }


def learned(line: Mapping[str, Any]) -> dict[str, float]:
    """What training is told by; not what comes of choices (see `scored_again`)."""
    told = figures(
        line, "loss", "/weight", "epoch/", "bad_samples", "contrastive_loss", "/missing", "/samples"
    )
    return {
        name: value
        for name, value in told.items()
        if not name.startswith("val/") or name.endswith(("/missing", "/samples"))
    }


ENDS = [*WHOLE, "continued", "again"]


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("mixture", MIXTURES)
def test_two_processes_end_where_one_does(runs, mixture, name):
    ours, one = (at_the_end(runs / mixture / run) for run in (name, "one"))
    assert ours.tensors.keys() == one.tensors.keys()
    for key in one.tensors:
        pair = without_key_bias(key, ours.tensors[key]), without_key_bias(key, one.tensors[key])
        torch.testing.assert_close(*pair, atol=1e-4, rtol=1e-3, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("mixture", MIXTURES)
def test_each_task_is_as_far_in_the_same_order_however_many_processes_read_it(runs, mixture, name):
    ours, one = (at_the_end(runs / mixture / run).facts for run in (name, "one"))
    assert ours["streams"] == one["streams"]
    assert ours["progress"]["samples"] == one["progress"]["samples"]
    assert {task: state["samples"] for task, state in ours["streams"].items()} == ours["progress"]["samples"]


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("mixture", MIXTURES)
def test_each_step_has_the_losses_weights_and_gradients_of_one_process(runs, mixture, name):
    ours, one = ([learned(line) for line in lines(runs / mixture / run)] for run in (name, "one"))
    assert len(one) == STEPS + 1 and len(ours) == (len(one) if name in WHOLE else STEPS - SAVED + 1)
    for got, wanted in zip(ours, one[-len(ours) :], strict=True):
        assert got == pytest.approx(wanted, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    "run", [f"{mixture}/{name}" for mixture in MIXTURES for name in WHOLE] + ["holed/two"]
)
def test_two_processes_score_what_one_does_with_the_same_weights(runs, run):
    scored = scored_again(runs / run)
    logged = {
        name: value for name, value in lines(runs / run)[-1].items() if name in scored and value is not None
    }
    assert {name.split("/")[1] for name in logged} == set(TASKS)
    assert logged == pytest.approx({name: scored[name] for name in logged}, rel=1e-6)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("mixture, measured", [("all", [1, 3, 5]), ("sampled", [4])])
def test_the_tasks_gradients_are_measured_as_in_one_process(runs, mixture, measured, name):
    """`sampled`: once each of the tasks was drawn."""
    ours, one = (
        [figures(line, "grad_norm/", "grad_cosine/") for line in lines(runs / mixture / run)]
        for run in (name, "one")
    )
    pairs = {"grad_cosine/digits/captions", "grad_cosine/digits/masks", "grad_cosine/captions/masks"}
    assert [step for step, line in enumerate(one, 1) if line] == measured
    assert all(line.keys() == pairs | {f"grad_norm/{task}" for task in TASKS} for line in one if line)
    for got, wanted in zip(ours, one, strict=True):
        assert got == pytest.approx(wanted, rel=1e-3, abs=1e-3)


def test_bad_samples_on_some_ranks_change_neither_the_size_of_batches_nor_what_is_learned(runs):
    """Classification, CoCa's gathered features and masks, at ZeRO 3, where also the forwards of evaluation
    are collectives."""
    two, one = (lines(runs / "holed" / run) for run in ("two", "one"))
    for got, wanted in zip(map(learned, two), map(learned, one), strict=True):
        assert got == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    assert two[STEPS - 1]["bad_samples"] > 5
    assert [two[-1][f"val/{task}/missing"] for task in TASKS] == [5, 6, 5] and two[-1][
        "val/captions/samples"
    ] == 19
    told = json.loads((runs / f"holed/two/pictures/step_{STEPS:08d}/pictures.json").read_text())
    assert Counter(own["task"] for own in told) == dict.fromkeys(TASKS, 3)
