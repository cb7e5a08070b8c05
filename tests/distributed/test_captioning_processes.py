"""Captioning in two processes: features are gathered, words are counted over ranks, and divided
weights generate."""

import json
from pathlib import Path
from typing import Any

import pytest
from deepspeed_launch import launch_runs
from PIL import Image
from scores import scored_again
from tinycoca import ROUTES
from tinyrun import CONTINUOUS, tiny_plain

from pipeline.config.load import from_plain
from pipeline.train.loop import train

STEPS = 5
WORDS = (
    "a zero one two three four five six seven eight nine the and of to left right above below over "
    "under digits there are in is".split()
)
TOKENIZER = dict(type="words", words=WORDS, context_length=24)
TOWER = dict(width=24, heads=2, layers=1)
MODEL = dict(
    embed_dim=24,
    text_cfg=TOWER,
    multimodal_cfg=TOWER,
    vision_cfg=dict(attn_pooler_queries=4, attn_pooler_heads=2),
)
DIVIDED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
ENGINES: dict[str, dict[str, Any]] = {
    "stage0": dict(type="deepspeed", zero_stage=0),
    "stage3": dict(type="deepspeed", zero_stage=3, deepspeed=DIVIDED),
    "fsdp": dict(type="fsdp"),
}
DRAWN: dict[str, Any] = dict(log=dict(pictures=2, trackers=[]))
CASES: dict[str, dict[str, Any]] = {
    "whole": {},
    "distilled": dict(objective="distill", steps=1, val=False),
    "views": dict(views=2, val=False),
}
"""What one process does of all the samples; the last two are done by two processes as well, at stage 0."""


def plain_of(
    digits: Path,
    output: Path,
    *,
    batch_size: int,
    views: int = 1,
    objective: str = "supervised",
    steps: int = STEPS,
    val: bool = True,
    **engine: Any,
) -> dict[str, Any]:
    plain = tiny_plain(
        digits,
        output,
        backbone=dict(drop_path=0.0),
        merging=CONTINUOUS,
        train=dict(steps=steps, log_every=1),
        balancing=dict(every=0),
        optim=dict(ema_decay=0.0, lr=1e-2, warmup_steps=0),
        objective=dict(type=objective, options=dict(temperature=0.02) if objective == "distill" else {}),
        engine=dict(precision="fp32", **engine),
    )
    data = dict(
        schema="captioning",
        tokenizer=TOKENIZER,
        train=str(digits),
        val=str(digits) if val else None,
        img_size=32,
        workers=0,
    )
    data |= dict(batch_size=batch_size, views=views, eval_batch_size=4)
    return plain | dict(tasks={route: task(route, data) for route in ROUTES})


def task(route: str, data: dict[str, Any]) -> dict[str, Any]:
    strategy = "beam" if route == "pooler" else "greedy"
    generation = dict(strategy=strategy, num_beams=2, max_length=8)
    return dict(
        type="captioning",
        head=dict(route=route, tokenizer=TOKENIZER, model=MODEL, generation=generation),
        data=data,
    )


@pytest.fixture(scope="module")
def runs(digits, tmp_path_factory) -> Path:
    """One launch of two processes with every engine; beside it the same runs by the local engine, in this
    process."""
    folder = tmp_path_factory.mktemp("captions")
    plan = [
        (plain_of(digits, folder / name, batch_size=4, **engine) | DRAWN, "none")
        for name, engine in ENGINES.items()
    ]
    plan += [
        (plain_of(digits, folder / name, batch_size=4, type="deepspeed", zero_stage=0, **case), "none")
        for name, case in CASES.items()
        if case
    ]
    launch_runs(plan, folder, imports=["open_clip"])
    for name, case in CASES.items():
        plain = plain_of(digits, folder / f"local {name}", batch_size=8, type="local", **case)
        train(from_plain(plain | DRAWN if name == "whole" else plain), "none")
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))


@pytest.mark.parametrize("name", [*ENGINES, "views"])
def test_two_processes_learn_what_one_does_of_all_the_samples(runs, name):
    """Each step's losses and the norm of its gradient, while the weights change a lot."""
    told = ("_loss", "/loss", "grad_norm")
    curve, expected = (
        [{k: v for k, v in line.items() if k.endswith(told)} for line in lines(runs / run)]
        for run in (name, "local whole" if name in ENGINES else f"local {name}")
    )
    assert {task for point in curve for task in ROUTES if f"{task}/contrastive_loss" in point} == set(ROUTES)
    for got, wanted in zip(curve, expected, strict=True):
        assert got == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("name", ENGINES)
def test_pictures_are_drawn_by_all_ranks_where_they_divide_the_weights(runs, name):
    """The groups are choices, which rounding may change; how many there are is not."""
    ours, wanted = (runs / run / f"pictures/step_{STEPS:08d}" for run in (name, "local whole"))
    assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in wanted.iterdir())
    told, expected = (json.loads((folder / "pictures.json").read_text()) for folder in (ours, wanted))
    for own, other in zip(told, expected, strict=True):
        assert (own["task"], own["key"], own["words"][0]) == (other["task"], other["key"], other["words"][0])
        with Image.open(ours / own["file"]) as drawn, Image.open(wanted / own["file"]) as reference:
            assert drawn.size == reference.size
    assert len(told) == 2 * len(ROUTES)


def test_two_processes_distil_what_one_does_of_all_the_words(runs):
    """Captions differ in length. Of the first step, as later the divergence is no larger than rounding; a low
    temperature lifts that of untrained heads above it."""
    told = ("/distill", "grad_norm")
    got, wanted = (
        {k: v for k, v in lines(runs / run)[0].items() if k.endswith(told)}
        for run in ("distilled", "local distilled")
    )
    assert len(wanted) == 3 and got == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("name", ENGINES)
def test_two_processes_caption_as_one(runs, name):
    got, expected = (
        {k: v for k, v in lines(runs / name)[-1].items() if k.startswith("val/") and v is not None},
        scored_again(runs / name),
    )
    assert got.keys() <= expected.keys() and got["val/pooler/samples"] == got["val/direct/samples"] == 25
    assert got == pytest.approx({k: expected[k] for k in got}, rel=1e-6)
