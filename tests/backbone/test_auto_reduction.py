"""`auto:R` on real models, by a clock that counts tokens in place of seconds, and once by the real one."""

import pytest
import timm
import torch
from pages import ROOT, blocks
from tiny import tiny_vit

from pipeline import paying_reduction
from pipeline.backbone.auto_reduction import BATCH, Auto, read_auto
from pipeline.backbone.build import build_backbone
from pipeline.backbone.patching.patch import patch
from pipeline.errors import ConfigError


def counting_clock(blocks, merge: float):
    """A clock that a block moves on by a tick for each of its tokens, and a merge by `merge`."""
    ticks = [0.0]

    def count(_, args, __):
        state, r, _ = args
        ticks[0] += state.tokens.shape[1] + (merge if r else 0)

    for block in blocks:
        block.register_forward_hook(count)
    return lambda: ticks[0]


def test_late_merges_are_left_out_and_the_model_stays_as_it_was():
    model = tiny_vit("dtem", reduction=8, timm_options={"depth": 5}).train()
    clock = counting_clock(model.blocks, 17)
    assert paying_reduction(model, 8, batch=2, clock=clock) == [8, 8, 0, 0, 0]
    assert model.training and model.reduction == 8
    assert paying_reduction(model, 8, batch=2, clock=counting_clock(model.blocks, 1000)) == [0] * 5
    assert paying_reduction(tiny_vit("none"), 8, batch=1) == [0, 0, 0]


def test_a_patched_model_is_measured_as_its_own():
    model = patch(timm.create_model("test_vit", img_size=64).eval(), "tome", 2)
    clock = counting_clock(model.merging_blocks, 0.5)
    depth = len(model.merging_blocks)
    assert paying_reduction(model, [2] * depth, batch=1, clock=clock) == [2] * (depth - 1) + [0]


def test_auto_states_r_of_each_block():
    model = timm.create_model("test_vit", img_size=64).eval()
    patch(model, "tome", "auto:2@1")
    assert isinstance(model.reduction, list) and set(model.reduction) <= {0, 2}
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 64)).isfinite().all()


def test_the_code_of_the_page_runs(monkeypatch):
    drawn = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda _: drawn("test_vit", img_size=64))
    (code,) = blocks(ROOT / "docs/speed.md", "python")
    names: dict = {}
    exec(compile(code, "speed.md", "exec"), names)
    assert isinstance(names["model"].reduction, list)


def test_what_can_be_asked_for():
    assert read_auto("auto") == Auto(None, BATCH) and read_auto("auto@8") == Auto(None, 8)
    assert read_auto("auto:13@64") == Auto(13, 64) and read_auto("auto:0.9") == Auto(0.9)
    assert read_auto("auto:(8,-1)@2") == Auto((8, -1), 2)
    long = "auto:2@" + 5000 * "9"
    for wrong in ("auto:13@0", "auto:13@x", "auto:True", "automatic:3", "auto:x", "auto:", long):
        with pytest.raises(ConfigError, match="none of auto, auto:R and auto:R@IMAGES"):
            read_auto(wrong)


def test_where_it_cannot_be_measured_it_says_so():
    with pytest.raises(ConfigError, match="measured on the device that the model is on"):
        build_backbone("test_vit", policy="tome", reduction="auto:2")
    with pytest.raises(ConfigError, match="batch is 0"):
        paying_reduction(tiny_vit("tome"), 2, batch=0)
    for batch in (10**12, 10**30):
        with pytest.raises(ConfigError, match="64x64 pixels at once do not fit into the memory of cpu"):
            paying_reduction(tiny_vit("tome"), 2, batch=batch)
    with pytest.raises(ConfigError, match="does not divide by the patch"):
        paying_reduction(tiny_vit("tome"), 2, size=(60, 64))
