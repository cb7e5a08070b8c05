"""A policy on a model that it cannot serve is refused by name, before any forward, with what would work."""

import re

import pytest
import timm
from tiny import IMG, PREFIXES, SIZES, traits_of_tiny
from tiny_hugging_face import library_model

import dtem
from pipeline import build_backbone
from pipeline.backbone.rotary import RotaryRule
from pipeline.config.load import from_plain
from pipeline.errors import ConfigError
from pipeline.merging.policies import POLICIES
from pipeline.merging.policy import TRAITS, MergePolicy
from pipeline.merging.traits import check_serves, serving, traits_of
from pipeline.plan.facts import ModelFacts
from pipeline.plan.resolve import resolve

EVERY = frozenset(TRAITS)
POOLED = "no prefix, average pooling"
ROTARY = "eva02: rotary positions"
CLASS_TOKEN = {"class token", "distilled", "registers", "clip: norm before the blocks", "swiglu"}
NO_CLASS_TOKEN = {"registers, no class token, average pooling", POOLED, "attention pooling"}


def test_every_trait_is_what_a_model_can_have():
    assert traits_of(class_token=True) == EVERY - {"clips"}
    assert traits_of(class_token=True, times=2) == EVERY - {"plane"}
    assert traits_of(class_token=True, times=1) == EVERY - {"plane", "clips"}
    lacking = traits_of(class_token=False, one_grid=False, rotary="virtual_unmerging")
    assert not lacking & {"class_token", "one_grid", "added_positions", "merged_attention"}
    assert EVERY - traits_of(class_token=True, rotary="mean_rotation") == {"added_positions", "clips"}


@pytest.mark.parametrize("name", POLICIES.names())
@pytest.mark.parametrize("trait", sorted(TRAITS))
def test_a_policy_is_refused_where_what_it_requires_lacks_and_only_there(name, trait):
    """The message names the policy, the model, what lacks, and policies that are not refused there."""
    policy, has = POLICIES.build(name), EVERY - {trait}
    if trait not in policy.requires:
        check_serves(policy, has, "'mine'")
        return
    with pytest.raises(ConfigError) as refused:
        check_serves(policy, has, "'mine'")
    message = str(refused.value)
    assert f"merge policy '{name}' cannot serve 'mine': it needs {TRAITS[trait]}" in message
    found = re.search(r"can merge this one \((.*)\)$", message)
    assert found and found[1].split(", ") == serving(has) and name not in serving(has)
    assert "tome" in serving(has) and "none" not in serving(has)


def test_what_no_model_can_have_is_no_requirement(monkeypatch):
    own = type("Own", (MergePolicy,), {"requires": frozenset({"colour"})})
    monkeypatch.setitem(POLICIES._factories, "own", own)
    with pytest.raises(ConfigError, match=f"'own' requires 'colour'; there is {', '.join(sorted(TRAITS))}"):
        POLICIES.build("own")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_a_backbone_of_timm_has(prefix):
    has = traits_of_tiny(prefix)
    assert ("added_positions" in has) == ("rotary" not in prefix)
    if prefix in CLASS_TOKEN | NO_CLASS_TOKEN:
        assert ("class_token" in has) == (prefix in CLASS_TOKEN)


@pytest.mark.parametrize(
    ("policy", "prefix", "lacks"),
    [("evit", POOLED, "class_token"), ("gtp", ROTARY, "added_positions")],
)
def test_building_and_patching_refuse_before_anything_changes(policy, prefix, lacks):
    name, options = PREFIXES[prefix]
    with pytest.raises(ConfigError, match=f"'{policy}' cannot serve {name}: it needs {TRAITS[lacks]}"):
        build_backbone(name, policy=policy, img_size=IMG, timm_options=SIZES | options)
    model = timm.create_model(name, img_size=IMG, **SIZES | options)
    before = {key: id(own) for key, own in model.named_modules()}, type(model)
    with pytest.raises(ConfigError, match=f"cannot serve {type(model).__name__}: it needs {TRAITS[lacks]}"):
        dtem.patch(model, policy)
    assert ({key: id(own) for key, own in model.named_modules()}, type(model)) == before


def test_dropping_is_refused_where_dropped_patches_would_attend():
    """And so is a mean by the attention of merged tokens, of which there is none."""
    name, options = PREFIXES[ROTARY]
    model = timm.create_model(name, img_size=IMG, **SIZES | options)
    rule = RotaryRule("virtual_unmerging")
    for policy, options in (("evit", {}), ("evit", {"fuse": True}), ("vid_tldr", {})):
        with pytest.raises(ConfigError, match="needs attention among merged tokens"):
            dtem.patch(model, policy, rotary=rule, **options)
    dtem.patch(model, "tome", rotary=rule)


def test_models_of_transformers_say_what_they_have():
    refused = {
        "SiglipVisionModel": ("evit", "class_token"),
        "SiglipForImageClassification": ("evit", "class_token"),
        "Siglip2VisionModel": ("gtp", "one_grid"),
        "DINOv3ViTModel": ("gtp", "added_positions"),
        "ViTModel": ("rlt", "clips"),
        "VideoMAEModel": ("evit", "class_token"),
    }
    for name, (policy, lacks) in refused.items():
        with pytest.raises(ConfigError, match=f"cannot serve {name}: it needs {TRAITS[lacks]}"):
            dtem.patch(library_model(name), policy)
    for name in ("ViTModel", "CLIPVisionModel", "Dinov2Model", "DINOv3ViTModel"):
        dtem.patch(library_model(name), "evit")
    dtem.patch(library_model("VideoMAEModel"), "rlt")


def test_a_config_is_refused_with_its_other_mistakes():
    plain = {
        "backbone": {"name": "vit_base_patch16_gap_224"},
        "tasks": {"a": {"type": "classification", "data": {"schema": "imagenet", "train": "t.tar"}}},
        "train": {"steps": 10, "mode": "backbone", "best": "b"},
        "merging": {"policy": "evit", "reduction": 8},
        "output": "runs/x",
    }
    plain["tasks"]["a"]["data"]["batch_size"] = 4
    facts = ModelFacts(patch=(16, 16), depth=12, num_prefix=0, grid=(14, 14), class_token=False)
    with pytest.raises(ConfigError) as refused:
        resolve(from_plain(plain), 1, facts)
    message = str(refused.value)
    assert "merging: merge policy 'evit' cannot serve 'vit_base_patch16_gap_224'" in message
    assert "train.best is 'b'" in message
