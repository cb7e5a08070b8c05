"""`dtem teach` says how long it will take before the first step, and writes no more than is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from launch.published.merged import merged_model
from launch.published.pictures import find_pictures
from launch.published.signal import signal_of
from launch.teach import estimate, plan
from launch.teach import run as way
from launch.teach.estimate import Estimate, estimated
from launch.teach.lesson import Order
from launch.teach.loop import Teaching, in_words
from launch.teach.run import teach_published
from pipeline import load_adapter
from pipeline.backbone.adapters.config import name_of_data
from pipeline.backbone.macs import counted_model
from pipeline.backbone.published import Published, open_published
from pipeline.config.schema import OptimConfig
from pipeline.errors import ConfigError

CPU, SIZE = torch.device("cpu"), 64
HOW = Teaching(steps=2, optim=OptimConfig(lr=1e-2, warmup_steps=0), reduction=2, pairs="first", seed=0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 70, 80, 3), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


def opened() -> Published:
    torch.manual_seed(0)
    return open_published("timm:test_vit", pretrained=False, img_size=SIZE)


def order(pictures, out, **changes):
    made = Order(
        data=str(pictures),
        out=out,
        how=HOW,
        policy="dtem",
        signal=None,
        macs=[],
        batch_size=4,
        workers=0,
        device=CPU,
        precision="fp32",
        license=None,
    )
    return replace(made, **changes)


def test_the_time_is_said_before_the_first_step(pictures, tmp_path, monkeypatch, capsys):
    said = []
    monkeypatch.setattr(way, "teach", lambda *_, **__: said.append(capsys.readouterr().out) or 0)
    teach_published(order(pictures, tmp_path / "out", macs=[0.5]), find_pictures(str(pictures)), opened())
    plan, work, time = said[0].splitlines()
    assert "mean [0.5, 0.5, 0.5]" in plan and "2 steps of 4 images" in work
    assert time.startswith("about ") and "of which the curve" in time and "s a step" in time


def test_a_way_to_less_is_said_where_it_is_long(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(way, "teach", lambda *_, **__: 0)
    monkeypatch.setattr(plan, "estimated", lambda *_, **__: Estimate(60.0, 90.0, 20.0, 3 << 30))
    asked = order(pictures, tmp_path / "out", how=replace(HOW, steps=100))
    teach_published(asked, find_pictures(str(pictures)), opened())
    said = capsys.readouterr().out
    assert "about 2.5 hours: 60 s a step, but 90 s to read its pictures, which more --workers" in said
    assert "3.0 GiB of memory at most; fewer --steps" in said


def test_the_estimate_changes_nothing_of_what_is_taught(pictures, tmp_path, monkeypatch):
    found = find_pictures(str(pictures))
    assert teach_published(order(pictures, tmp_path / "with"), found, opened())
    monkeypatch.setattr(plan, "estimated", lambda *_, **__: Estimate(1.0, 1.0, 1.0, None))
    assert teach_published(order(pictures, tmp_path / "without"), found, opened())
    first, second = (load_adapter(tmp_path / name).tensors for name in ("with", "without"))
    for key in first:
        torch.testing.assert_close(first[key], second[key])


def asked(published, **changes):
    model = merged_model(published.model, "dtem", 2, seed=0)
    counted = counted_model(model, torch.zeros(1, 3, SIZE, SIZE))
    options = dict(size=(SIZE, SIZE), batch_size=8, device=CPU, precision="fp32", read=0.0, workers=1)
    return model, lambda: estimated(model, signal_of(published), replace(HOW, **changes), counted, **options)


def test_a_trial_leaves_no_gradient_and_prices_all_blocks(monkeypatch):
    """Memory is that of the step that prices most of them."""
    priced, real = [], estimate.merge_loss

    def loss(model, signal, images, how, counted, objective, step):
        priced.append(how.blocks_at(step, counted, signal.reads_prefix_alone(model)))
        return real(model, signal, images, how, counted, objective, step)

    monkeypatch.setattr(estimate, "merge_loss", loss)
    model, trial = asked(opened())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = trial()
    priceable = range(len(model.merging_blocks) - 1)  # it reads its class token
    assert priced[0] == priced[1] == priceable and priced[2] == priceable[-1:]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert found.step > 0 and found.forward > 0 and found.memory is None


def test_a_step_that_does_not_fit_says_a_smaller_batch(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("launch.teach.estimate.merge_loss", full)
    with pytest.raises(ConfigError, match="a step of 8 images of 64x64 .*; give --batch-size 4, or"):
        asked(opened())[1]()


def test_reading_hides_behind_learning():
    assert Estimate(2.0, 1.0, 0.5, None).seconds(10, 4) == 22
    assert Estimate(1.0, 2.0, 0.5, None).seconds(10, 0) == 20
    assert Estimate(1.0, 2.0, 0.5, None, meanwhile=False).seconds(10, 0) == 30
    assert [in_words(seconds) for seconds in (40, 600, 7200)] == ["40 s", "10 minutes", "2.0 hours"]


def test_an_old_curve_does_not_stand_beside_a_new_adapter(pictures, tmp_path):
    found, out = find_pictures(str(pictures)), tmp_path / "out"
    assert teach_published(order(pictures, out, macs=[0.7]), found, opened())
    assert (out / "curve" / "sweep.json").is_file()
    (out / "curve" / "notes.txt").write_text("mine")
    assert teach_published(order(pictures, out), found, opened())
    assert [path.name for path in (out / "curve").iterdir()] == ["notes.txt"]
    assert load_adapter(out).config.curves == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/data/imagenet/val", "val"),
        ("photos.v2", "photos.v2"),
        ("https://host/x.tar?token=SECRET", None),
        ("https://user:SECRET@host/x", None),
        ("pipe:curl -H SECRET x", None),
        ("x-{000..003}.tar", None),
        (".", None),
        (None, None),
    ],
)
def test_a_card_names_a_folder_and_no_secret(source, name):
    assert name_of_data(source) == name
