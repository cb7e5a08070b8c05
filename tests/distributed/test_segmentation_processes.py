"""Segmentation in two DeepSpeed processes: mmseg's heads, with norms whose running statistics every rank
fills from its own samples."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed_launch import launch_runs, without_key_bias
from tiny_lemevit import ENDS, tiny_section
from tinyrun import CONTINUOUS, tiny_plain

from pipeline.config.load import from_plain
from pipeline.train.evaluate import evaluate
from pipeline.train.loop import train
from pipeline.train.setup import build_run
from pipeline.train.storage import read_checkpoint

STAGES = (1, 3)
STEPS, SAVED = 4, 2
NORM = dict(
    type="BN", momentum=1.0
)  # so the statistics are those of the last batch, which is another one on each rank
UPER = dict(type="UPerHead", channels=8, in_index=[0, 1], pool_scales=(1, 2), norm_cfg=NORM)
FCN = dict(type="FCNHead", channels=8, num_convs=1, in_index=0, norm_cfg=NORM)
SEGMENTER = dict(type="SegmenterMaskTransformerHead", channels=24, num_layers=1, num_heads=2, embed_dims=24)
HEAD: dict[str, Any] = dict(
    num_classes=11, decode_head=UPER, auxiliary_head=[FCN, SEGMENTER], out_indices=[0, 2]
)


def plain_of(
    digits: Path, output: Path, *, batch_size: int, val: bool = True, **engine: Any
) -> dict[str, Any]:
    """Samples are evaluated one by one, so that it does not matter which rank has which."""
    plain = tiny_plain(
        digits,
        output,
        backbone=dict(drop_path=0.0),
        merging=CONTINUOUS,
        train=dict(steps=STEPS, log_every=1, save_every=SAVED, keep_checkpoints=5),
        optim=dict(ema_decay=0.0),
        engine=dict(precision="fp32", **engine),
    )
    augment = dict(short_side=32, resize_range=(0.8, 1.2), max_class_share=1.0)
    data = dict(
        schema="segmentation",
        train=str(digits),
        val=str(digits) if val else None,
        img_size=32,
        workers=0,
        augment=augment,
    )
    data |= dict(batch_size=batch_size, eval_batch_size=1)
    return plain | dict(tasks=dict(scenes=dict(type="segmentation", head=HEAD, data=data)))


def plain_of_pyramid(digits: Path, output: Path, **engine: Any) -> dict[str, Any]:
    """LeMeViT, whose own norms are over batches too. Micro-batches are of four images. By SGD, as AdamW makes
    large steps where a gradient is rounding, such as that of a bias in front of a norm."""
    plain = plain_of(digits, output, batch_size=4, val=False, **engine)
    head = dict(num_classes=11, decode_head=UPER | dict(in_index=[0, 1, 2, 3]), out_indices=ENDS[1:])
    head["decode_head"] |= dict(dropout_ratio=0.0)
    head |= dict(final_norm=False)
    data = plain["tasks"]["scenes"]["data"] | dict(img_size=64)
    tasks = dict(scenes=dict(type="segmentation", head=head, data=data))
    merging = dict(policy="none", reduction=0)
    changes = dict(train=plain["train"] | dict(mode="backbone"), optim=dict(type="sgd", lr=0.1))
    return plain | dict(backbone=tiny_section(), merging=merging, tasks=tasks, **changes)


@pytest.fixture(scope="module")
def runs(digits, tmp_path_factory) -> Path:
    """One launch: at each stage a run of four steps, and another that continues it from its second."""
    folder = tmp_path_factory.mktemp("runs")
    plan = []
    for stage in STAGES:
        whole, resumed = folder / f"whole{stage}", folder / f"resumed{stage}"
        engine = dict(batch_size=4, type="deepspeed", zero_stage=stage)
        plan.append((plain_of(digits, whole, **engine), "none"))
        plan.append(
            (plain_of(digits, resumed, val=False, **engine), str(whole / f"checkpoints/step_{SAVED:08d}"))
        )
    plan.append((plain_of_pyramid(digits, folder / "pyramid", type="deepspeed", zero_stage=2), "none"))
    launch_runs(plan, folder, imports=["tasks.mmseg_bridge.heads"])
    return folder


def at_the_end(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / f"checkpoints/step_{STEPS:08d}").tensors


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_ends_as_the_whole_one_to_the_last_bit(runs, stage):
    whole, resumed = at_the_end(runs / f"whole{stage}"), at_the_end(runs / f"resumed{stage}")
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


@pytest.mark.parametrize("stage", STAGES)
def test_running_statistics_are_saved_as_they_were_learned(runs, stage):
    tensors = at_the_end(runs / f"whole{stage}")
    assert all(tensor.any() for name, tensor in tensors.items() if name.endswith("running_mean"))
    assert {int(tensor) for name, tensor in tensors.items() if name.endswith("num_batches_tracked")} == {
        STEPS
    }


def test_the_stages_learn_the_same(runs):
    one, other = (at_the_end(runs / f"whole{stage}") for stage in STAGES)
    for name in (name for name in one if name.startswith("model.")):
        pair = without_key_bias(name, other[name]), without_key_bias(name, one[name])
        torch.testing.assert_close(*pair, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_score_what_one_does_with_the_same_weights(runs, digits, tmp_path, stage):
    config = from_plain(plain_of(digits, tmp_path, batch_size=8, type="local"))
    run = build_run(config, str(runs / f"whole{stage}/checkpoints/step_{STEPS:08d}"))
    scores = evaluate(run.engine, run.loaders)["scenes"]
    lines = (runs / f"whole{stage}/metrics.jsonl").read_text().splitlines()
    (logged,) = (line for line in map(json.loads, lines) if "val/scenes/mIoU" in line)
    assert scores["samples"] == 25.0 and scores["mIoU"] is not None
    assert {name: logged[f"val/scenes/{name}"] for name in scores} == scores


def test_two_processes_learn_a_pyramid_as_one_does_that_accumulates_two_micro_batches(runs, digits, tmp_path):
    """Norms then see the same images. Their statistics are means over ranks in two processes, and over steps
    in one."""
    train(from_plain(plain_of_pyramid(digits, tmp_path, type="local", accumulation=2)))
    one, two = at_the_end(tmp_path), at_the_end(runs / "pyramid")
    assert one.keys() == two.keys()
    half = read_checkpoint(tmp_path / f"checkpoints/step_{SAVED:08d}").tensors
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    names = [name for name in one if name.startswith("model.") and not name.endswith(statistics)]
    whole, other, before = (
        torch.cat([tensors[name].flatten() for name in names]) for tensors in (one, two, half)
    )
    assert (other - whole).norm() < 1e-3 * (whole - before).norm(), (
        "by norm: roundings grow through the norms"
    )
