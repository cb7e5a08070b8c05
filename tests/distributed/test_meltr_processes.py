"""The loss transformer in two DeepSpeed processes, at each ZeRO stage that it can be trained at."""

import json
from pathlib import Path

import pytest
import torch
from deepspeed_launch import launch_runs, without_key_bias
from meltr_run import plain_of

from pipeline.config.load import from_plain
from pipeline.train.loop import train
from pipeline.train.storage import read_checkpoint

STAGES = (0, 1, 2)
STEPS = 5

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(digits, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("meltr")
    steps = dict(train=dict(steps=STEPS), engine=dict(precision="fp32"))
    train(from_plain(plain_of(digits, folder / "one", **steps)), "none")
    plan = []
    for stage in STAGES:
        engine = dict(precision="fp32", type="deepspeed", zero_stage=stage)
        plain = plain_of(digits, folder / f"stage{stage}", processes=2, **steps | dict(engine=engine))
        plan.append((plain, "none"))
    launch_runs(plan, folder)
    return folder


def lines(folder: Path, *names: str) -> list[dict[str, float]]:
    found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [
        {name: value for name, value in line.items() if any(each in name for each in names)} for line in found
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_weigh_and_end_as_one_does(runs, stage):
    ours, one = (lines(runs / name, "loss", "weight") for name in (f"stage{stage}", "one"))
    assert len(one) == STEPS and "captions/weight/contrastive_loss" in one[0]
    for got, wanted in zip(ours, one, strict=True):
        assert got == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    assert one[-1]["digits/weight"] != 0.5
    ends = [
        read_checkpoint(runs / name / f"checkpoints/step_{STEPS:08d}").tensors
        for name in (f"stage{stage}", "one")
    ]
    assert ends[0].keys() == ends[1].keys()
    for key, wanted in ends[1].items():
        if key.startswith(("model.balancing.", "model.backbone.")) and "in_proj_bias" not in key:
            pair = without_key_bias(key, ends[0][key]), without_key_bias(key, wanted)
            torch.testing.assert_close(
                *pair, atol=1e-3, rtol=1e-2, msg=lambda text, key=key: f"{key}: {text}"
            )
