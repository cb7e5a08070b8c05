"""Segmentation with mmseg's heads: what each learns, the merged decoder, and what the objectives ask of the
task."""

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from objectives_for import objectives_for
from segheads import CLASSES, HEADS, UPER, fcn, segmenter
from tiny import IMG, RELAXED, images, tiny_vit
from tiny_lemevit import ENDS, tiny_lemevit

from pipeline.data.targets import MaskTargets
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch
from pipeline.merging.unmerge import UNMERGES, unmerge
from pipeline.model import TASKS, MultiTaskModel
from pipeline.modes import set_modes
from pipeline.objectives import OBJECTIVES
from pipeline.parts import TRAINED
from tasks.mmseg_bridge.merged_segmenter import decode_merged
from tasks.segmentation import SegmentationTask

ROOT = Path(__file__).parents[2]


def model(head=None, variant="dtem", reduction=8, objective="supervised", prefix="class token", **options):
    backbone = tiny_vit(variant, prefix=prefix, reduction=reduction, timm_options={"depth": 4})
    task = TASKS.build("segmentation", backbone, **{"num_classes": CLASSES} | (head or segmenter()) | options)
    return MultiTaskModel(backbone, {"street": task}, OBJECTIVES.build(objective))


def stripes(size, img=IMG):
    """Each image in `CLASSES` broad stripes, in its own order; a frame of pixels is ignored."""
    columns = torch.arange(img) * CLASSES // img
    mask = (
        torch.stack([(columns + i) % CLASSES for i in range(size)])[:, None].repeat(1, img, 1).to(torch.uint8)
    )
    mask[:, :4], mask[:, -4:] = 255, 255
    return mask


def batch(size=2, mask=None):
    return Batch("street", images(size), MaskTargets(stripes(size) if mask is None else mask))


@pytest.mark.parametrize("name", HEADS)
def test_a_few_images_can_be_learned_by_heart(name):
    trained, samples = model(HEADS[name]).train(), batch()
    optimizer = torch.optim.AdamW(trained.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        output = trained(samples)
        losses.append(output.loss.item())
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert min(losses[-3:]) < 0.7 * losses[0], losses
    idle = [
        key
        for key, parameter in trained.named_parameters()
        if parameter.grad is None and ".metric." not in key
    ]
    assert not idle, f"no gradient reached {idle}"


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_logits_and_logs_have_the_promised_form(name, autocast):
    trained = model(HEADS[name]).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = trained(batch())
    assert output.predictions.dtype == output.loss.dtype == torch.float32
    assert output.predictions.shape[:2] == (2, CLASSES)
    totals = {key: (total / count).item() for key, (total, count) in output.logs.items()}
    parts = [value for key, value in totals.items() if "loss_" in key]
    assert totals["loss"] == pytest.approx(sum(parts), rel=1e-5) and totals["loss"] == pytest.approx(
        output.loss.item(), rel=1e-5
    )
    assert 0 <= totals["decode.acc_seg"] <= 1 and not any(
        total.requires_grad for total, _ in output.logs.values()
    )


@pytest.mark.parametrize("how", UNMERGES)
def test_an_image_without_labels_costs_nothing_and_is_finite(how):
    output = model(HEADS["linear with auxiliary heads"], unmerge=how).train()(
        batch(mask=torch.full((2, IMG, IMG), 255, dtype=torch.uint8))
    )
    output.loss.backward()
    assert output.loss == 0 and all(total.isfinite() for total, _ in output.logs.values())


def test_mean_loss_over_labelled_pixels_is_that_of_torch():
    head = segmenter(loss_decode={"type": "CrossEntropyLoss", "avg_non_ignore": True})
    output = model(head).eval()(batch())
    full = torch.nn.functional.interpolate(output.predictions, (IMG, IMG), mode="bilinear")
    expected = torch.nn.functional.cross_entropy(full, stripes(2).long(), ignore_index=255)
    torch.testing.assert_close(output.loss, expected)


def test_heads_read_the_unmerged_taps_and_the_last_block_behind_its_norm():
    built = model(HEADS["linear with auxiliary heads"], out_indices=[0, -1], reduction=9).eval()
    task = built.tasks["street"]
    assert task.taps == (0,) and task.unmerge == "residual"
    with torch.no_grad():
        output = built.backbone(images(), taps=task.taps, unmerge=task.unmerge)
        first, last = task.features(output)
        both = built.backbone(images(), taps=(0, 3), unmerge=task.unmerge)
    assert torch.equal(first, unmerge(both.taps[0])) and torch.equal(last, unmerge(both.final))
    raw = model(HEADS["linear with auxiliary heads"], out_indices=[0, -1], final_norm=False).tasks["street"]
    assert raw.taps == (0, 3)
    assert torch.equal(raw.features(both)[1], unmerge(both.taps[1]))


@pytest.mark.parametrize("prefix", ["class token", "registers", "no prefix, average pooling"])
@pytest.mark.parametrize("how", ["copy", "soft"])
@pytest.mark.parametrize("variant", ["tome", "dtem"])
def test_the_merged_decoder_equals_the_decoder_on_copies(variant, how, prefix):
    plain = model(variant=variant, unmerge=how, prefix=prefix, reduction=12).double().eval()
    with torch.no_grad():
        for parameter in plain.tasks.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        output = plain.backbone(images().double(), unmerge=how)
        exact = replace(output, final=replace(output.final, size=output.final.size.double()))
        task = plain.tasks["street"]
        expected, got = task.decode_head(task.features(exact)), decode_merged(task.decode_head, exact.final)
        without_sizes = decode_merged(
            task.decode_head, replace(exact.final, size=torch.ones_like(exact.final.size))
        )
    assert output.final.size.max() > 1 and expected.std() > 0.1
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)
    assert (without_sizes - expected).abs().max() > 1e-3


def test_the_merged_decoder_is_an_option_of_the_task():
    plain, merged = model(unmerge="copy").eval(), model(merged_decoder=True).eval()
    assert merged.tasks["street"].unmerge == "copy"
    with torch.no_grad():
        torch.testing.assert_close(
            merged.predict(batch()).predictions, plain.predict(batch()).predictions, atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("objective", objectives_for(SegmentationTask))
@pytest.mark.parametrize("variant", RELAXED)
@pytest.mark.parametrize(
    "options", [{"unmerge": how} for how in UNMERGES] + [{"merged_decoder": True}], ids=str
)
def test_every_objective_trains_the_metric_embeddings_alone(objective, variant, options):
    trained = model(variant=variant, objective=objective, **options)
    for name, parameter in trained.named_parameters():
        parameter.requires_grad_(".metric." in name)
    output = trained.train()(batch())
    output.loss.backward()
    assert output.loss.isfinite()
    reached = [
        block.metric.weight.grad is not None and block.metric.weight.grad.abs().max().item() > 0
        for block in trained.backbone.blocks
    ]
    assert reached[:-1] == [True] * 3
    assert all(parameter.grad is None for parameter in trained.tasks.parameters())


@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_head_keeps_the_statistics_of_its_norms(frozen):
    built = model(HEADS["setr-pup"])
    built.tasks.requires_grad_(not frozen)
    before = copy.deepcopy(dict(built.tasks.named_buffers()))
    set_modes(built, TRAINED["joint"])
    built(batch())
    changed = any(not torch.equal(buffer, before[name]) for name, buffer in built.tasks.named_buffers())
    assert changed is not frozen


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_classes": 0}, "from 1 to 255"),
        ({"num_classes": 256}, "label 255 is ignored"),
        ({"out_indices": [2, 4]}, "4 blocks, 0 to 3"),
        ({"out_indices": [1, 0]}, "ascending"),
        ({"out_indices": []}, "ascending"),
        ({"unmerge": "blend"}, "copy, soft, residual"),
        ({"inference": {"mode": "slide"}}, "crop_size"),
        ({"merged_decoder": True, "unmerge": "residual"}, "merged_decoder"),
        ({"merged_decoder": True, "auxiliary_head": fcn()}, "merged_decoder"),
        ({"merged_decoder": True} | HEADS["setr-pup"], "SETRUPHead"),
        ({"decoder": "x"}, "its options: num_classes, decode_head"),
    ],
    ids=str,
)
def test_a_task_that_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        model(segmenter() | options)


def test_tasks_are_registered_without_the_seconds_that_mmseg_and_open_clip_take():
    code = "import sys, tasks; assert not {'mmseg', 'mmcv', 'open_clip'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=600)


def test_a_pyramid_of_stages_is_read_at_each_of_its_scales():
    """LeMeViT's: patches of 4, 8, 16 and 32 pixels, of other channels each, without its meta tokens."""
    head = {"decode_head": UPER, "out_indices": ENDS[1:], "final_norm": False}
    task = TASKS.build("segmentation", tiny_lemevit(), num_classes=CLASSES, **head)
    trained = MultiTaskModel(tiny_lemevit(), {"street": task}, OBJECTIVES.build("supervised")).train()
    shapes = [tuple(grid.shape[1:]) for grid in task.features(trained.encode("street", images()))]
    assert shapes == [(16, 16, 16), (24, 8, 8), (32, 4, 4), (40, 2, 2)]
    output = trained(batch())
    assert output.predictions.shape == (2, CLASSES, 16, 16)
    output.loss.backward()
    read = {name for name, own in trained.backbone.named_parameters() if own.grad is not None}
    assert {"meta_tokens", "blocks.6.mlp.fc2.weight"} <= read
    with torch.no_grad():
        predictions = task.infer(trained.eval().encoder("street"), batch(mask=stripes(2, 80)))
    assert [tuple(own.shape) for own in predictions] == [(80, 80)] * 2
