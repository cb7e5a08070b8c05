"""A model card says what the configuration says, in the hub's form, and nothing in it becomes markup."""

from dataclasses import replace

import pytest
import timm
import torch
import yaml
from timm.models import save_for_hf
from tiny import SIZES, images

from pipeline import patch, push_adapter, save_adapter
from pipeline.backbone.adapters.card import card_text
from pipeline.backbone.adapters.collect import collect_adapter
from pipeline.backbone.adapters.config import Curve, CurvePoint, Merging, Recipe, from_json
from pipeline.merging.policies import POLICIES
from pipeline.merging.policies.dtem import DTEM

CURVE = Curve(
    task="digits",
    metric="top1",
    unit="%",
    split="val",
    samples=30,
    points=[
        CurvePoint(reduction=0, macs=1.0, scores={"none": 0.7125}),
        CurvePoint(
            reduction=[8, 8, 0], macs=0.503, scores={"dtem": 0.705, "tome": 0.68, "dtem_untrained": 0.69}
        ),
    ],
)


@pytest.fixture
def config(taught):
    facts = dict(base_model="timm/deit_tiny_patch16_224.fb_in1k", curves=[CURVE], license="apache-2.0")
    return collect_adapter(taught, recipe=Recipe(objective="merge_cost", steps=3), **facts).config


def header(card):
    _, facts, body = card.split("---\n", 2)
    return yaml.safe_load(facts), body


def test_the_header_is_the_hubs(config):
    facts, _ = header(card_text(config, "mine"))
    assert facts["library_name"] == "dtem" and facts["license"] == "apache-2.0"
    assert facts["base_model"] == "timm/deit_tiny_patch16_224.fb_in1k" and "token-merging" in facts["tags"]
    assert facts["base_model_relation"] == "adapter"


def test_the_curve_is_a_table(config):
    card = card_text(config, "mine")
    assert "## digits: top1 (%), 30 samples, split val" in card
    assert "| MACs | reduction | unmerged | tome | dtem | dtem\\_untrained |" in card
    assert "| 100.0 % | 0 | 71.25 | - | - | - |" in card
    assert "| 50.3 % | \\[8, 8, 0\\] | - | 68 | 70.5 | 69 |" in card


def test_a_metric_without_a_unit_stands_as_it_is(config):
    cosine = replace(CURVE, metric="cosine", unit="")
    assert "| 100.0 % | 0 | 0.7125 | - | - | - |" in card_text(replace(config, curves=[cosine]), "mine")


def test_the_lines_of_use_are_three(config):
    (code,) = card_text(config, "hf-hub:me/x").split("```python\n")[1:]
    lines = code.split("\n```")[0].splitlines()
    assert len(lines) == 3 and lines[2] == 'dtem.patch(model, reduction=8, adapter="hf-hub:me/x")'
    assert (
        lines[1] == 'model = timm.create_model("hf-hub:timm/deit_tiny_patch16_224.fb_in1k", pretrained=True)'
    )


CLIP = "vit_base_patch32_clip_quickgelu_224"


@pytest.mark.parametrize(
    ("base", "load"),
    [
        (dict(name="me/vit"), 'timm.create_model("hf-hub:me/vit", pretrained=True)'),
        (
            dict(name="timm/vit_base_patch32_clip_224.openai", architecture=CLIP),
            f'timm.create_model("{CLIP}.openai", pretrained=True)',
        ),
        (
            dict(name="me/vit", options={"img_size": 64}),
            'timm.create_model("hf-hub:me/vit", pretrained=True, img_size=64)',
        ),
        (
            dict(name="facebook/dinov2-small", architecture="Dinov2Model"),
            'Dinov2Model.from_pretrained("facebook/dinov2-small")',
        ),
        (
            dict(architecture="ViTForImageClassification"),
            'ViTForImageClassification.from_pretrained("FOLDER")  # with the weights it was taught on',
        ),
    ],
)
def test_the_lines_build_the_base_as_its_library_does(config, base, load):
    own = replace(config.base, **dict(name=None) | base)
    (code,) = card_text(replace(config, base=own), "x").split("```python\n")[1:]
    first, second = code.splitlines()[:2]
    assert second == f"model = {load}"
    assert ("transformers import " + load.partition(".")[0] in first) == ("from_pretrained" in load)


def test_the_lines_name_another_policy_and_no_reduction_that_is_not_known(config, monkeypatch):
    monkeypatch.setitem(POLICIES._factories, "own", type("Own", (DTEM,), {}))
    card = card_text(replace(config, merging=Merging(policy="own")), "mine")
    assert 'dtem.patch(model, policy="own", adapter="mine")' in card


def test_a_configuration_is_plain_data_and_back(config):
    assert from_json(config.to_json(), "x") == config


def test_texts_become_no_markup(config):
    hostile = "x`\n# title\n---\n| <script> [a](b) \x1b[2J"
    curve = replace(
        CURVE, task=hostile, metric=hostile, points=[replace(CURVE.points[0], scores={hostile: 1.0})]
    )
    base = replace(config.base, name=hostile, architecture=hostile)
    card = card_text(replace(config, base=base, curves=[curve], license=hostile), hostile)
    facts, body = header(card)
    assert facts["license"] == hostile and card.replace("\n", "").isprintable()
    headings = [line for line in body.splitlines() if line.startswith("#")]
    assert len(headings) == 5 and "<script>" not in body.replace("`", "\0").split("\0")[0]


def test_the_lines_of_use_run(hub, tmp_path):
    """On a base and an adapter that are on the hub."""
    torch.manual_seed(0)
    base = timm.create_model("deit_tiny_patch16_224", **SIZES, img_size=64, num_classes=5).eval()
    save_for_hf(base, str(tmp_path / "base"), safe_serialization=True)
    hub.add_folder("timm/tiny", tmp_path / "base")
    taught = patch(base, reduction=9)
    push_adapter(save_adapter(taught, tmp_path / "own", base_model="timm/tiny"), "me/tiny-dtem")
    (code,) = hub.files("me/tiny-dtem")["README.md"].decode().split("```python\n")[1:]
    names: dict = {}
    exec(compile(code.split("\n```")[0], "README.md", "exec"), names)
    with torch.no_grad():
        assert torch.equal(names["model"].eval()(images()), taught(images()))
    assert names["model"].reduction == 9
