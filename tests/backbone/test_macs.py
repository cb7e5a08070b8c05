"""The analytic count against torch's own counter."""

from itertools import combinations

import pytest
import torch
from tiny import IMG, PREFIXES, ROTARY, SIZES, VARIANTS, images, tiny_vit
from tiny_hugging_face import inputs, library_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline import patch
from pipeline.backbone.build import create_vit
from pipeline.backbone.macs import count_macs, counted_model, reduction_for_macs, spread
from pipeline.backbone.rotary import RotaryRule
from pipeline.backbone.vit import MergingViT
from pipeline.errors import ConfigError
from pipeline.merging.matching import match, parity_split, similarity
from pipeline.merging.policy import EVIDENCE, MergePolicy

POLICIES_ONLY = [name for name, (policy, _) in VARIANTS.items() if name == policy]
ALL = sorted(EVIDENCE)
NEEDS = [(), *((name,) for name in ALL), *combinations(ALL, 2), tuple(ALL)]
"""Sets of evidence: none, one, each two, all."""


class ByAll(MergePolicy):
    """Pairs are alike by all vectors that it needs, and sources count by the attention that it needs."""

    def __init__(self, needs):
        self.needs = frozenset(needs)

    def choose(self, evidence, state, r, *, relaxed):
        split = parity_split(state)
        scores = torch.zeros(len(state.tokens), *split.counts)
        for name in self.needs:
            value = getattr(evidence, name)
            if name in ("tokens", "keys", "embedding"):
                scores = scores + similarity(value, split)
            else:
                value = value.mean(1) if value.ndim == 3 else value
                scores = scores + value[:, split.sources, None]
        return match(state, scores, split, r)


def counted(model, size=64):
    """FLOPs of one image by torch's counter, in which the math kernel shows both products of attention."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.eval()(images(1, size))
    return counter.get_total_flops()


@pytest.mark.parametrize("variant", [*POLICIES_ONLY, "tome_nearest", "dtem_path"])
@pytest.mark.parametrize("reduction", [0, 4, (6, -1.0), [0, 9, 0], 0.7, 100], ids=repr)
def test_the_formula_agrees_with_the_counter(variant, reduction):
    model = tiny_vit(variant, reduction=reduction)
    assert count_macs(model).flops == counted(model)


@pytest.mark.parametrize("needs", NEEDS, ids=lambda needs: " ".join(needs) or "nothing")
def test_all_that_a_policy_needs_is_counted(needs):
    vit = create_vit("deit_tiny_patch16_224", img_size=IMG, timm_options=SIZES)
    model = MergingViT(vit, ByAll(needs), [6, 0, 5])
    assert count_macs(model).flops == counted(model)


@pytest.mark.parametrize("variant", ["tome", "dtem"])
@pytest.mark.parametrize("prefix", ["distilled", "registers", "no prefix, average pooling", "swiglu"])
def test_prefixes_and_gated_mlps_are_counted(variant, prefix):
    model = tiny_vit(variant, prefix=prefix, reduction=5)
    assert count_macs(model).flops == counted(model)


@pytest.mark.parametrize(
    "prefix", [prefix for prefix in PREFIXES if "side by side" in prefix or "several queries" in prefix]
)
@pytest.mark.parametrize("variant", ["dtem", "mctf"])
def test_blocks_of_every_form_are_counted(prefix, variant):
    model = tiny_vit(variant, prefix=prefix, reduction=5)
    assert count_macs(model).flops == counted(model)


@pytest.mark.parametrize("prefix", [ROTARY[0], ROTARY[-1]])
def test_attention_to_every_member_is_counted(prefix):
    model = tiny_vit("tome", prefix=prefix, reduction=5, rotary=RotaryRule("virtual_unmerging"))
    assert count_macs(model).flops == counted(model) > count_macs(tiny_vit("tome", prefix=prefix)).flops


@pytest.mark.parametrize("policy", ["dtem", "mctf"])
@pytest.mark.parametrize("name", ["Dinov2Model", "DINOv3ViTModel", "SiglipVisionModel"])
def test_patched_models_are_counted(name, policy):
    """But for the pooler."""
    model, batch = patch(library_model(name), policy, reduction=5), inputs(name)
    one = batch["pixel_values"][:1]
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.encode(one)
    known = counted_model(model, one)
    assert known.macs(known.schedule(5)).flops == counter.get_total_flops()


def test_another_input_size_is_counted():
    model = tiny_vit("dtem", reduction=8)
    assert count_macs(model, grid=(12, 12)).flops == counted(model, 96)


def test_the_parts_add_up_and_name_the_tokens():
    count = count_macs(tiny_vit("dtem", reduction=8))
    assert count.total == count.embed + sum(count.blocks) + sum(count.metric)
    assert count.tokens == (57, 49, 41)
    assert count.flops == 2 * count.total


def test_deit_small_costs_what_the_papers_say():
    """4.60 GMACs unmerged; -37.2 % at r = 12 with the metric embeddings."""
    sizes = {"patch_size": 16, "depth": 12, "embed_dim": 384, "num_heads": 6}
    with torch.device("meta"):
        model = tiny_vit("dtem", img_size=224, timm_options=sizes)
    full = count_macs(model, reduction=0).total
    assert full / 1e9 == pytest.approx(4.60, abs=0.01)
    assert count_macs(model, reduction=12).total / full - 1 == pytest.approx(-0.372, abs=0.001)


@pytest.mark.parametrize("variant", ["tome", "dtem"])
@pytest.mark.parametrize("fraction", [0.5, 0.66, 0.9, 1.0])
def test_the_solver_reaches_its_target_with_the_fewest_merges(variant, fraction):
    model = tiny_vit(variant)
    goal = fraction * count_macs(model, reduction=0).total
    schedule = reduction_for_macs(model, fraction)
    assert max(schedule) - min(schedule) <= 1 and schedule == sorted(schedule, reverse=True)
    assert count_macs(model, reduction=schedule).total <= goal
    if sum(schedule):
        assert count_macs(model, reduction=spread(sum(schedule) - 1, model.depth)).total > goal


def test_a_target_out_of_reach_says_what_is_in_reach():
    with pytest.raises(ConfigError, match="cannot be reached: merging all that can be leaves"):
        reduction_for_macs(tiny_vit("tome"), 0.1)
    with pytest.raises(ConfigError, match="fraction"):
        reduction_for_macs(tiny_vit("tome"), 1.5)


def test_a_schedule_for_gmacs_is_that_for_the_same_fraction():
    model = tiny_vit("dtem")
    whole = count_macs(model, None, 0).total
    early = reduction_for_macs(model, 0.8, within=0.4)
    assert early[0] > 0 == sum(early[1:]) and count_macs(model, reduction=early).total <= 0.8 * whole
    assert reduction_for_macs(model, gmacs=0.6 * whole / 1e9) == reduction_for_macs(model, 0.6)
    for wrong in ({}, {"fraction": 0.5, "gmacs": 1.0}):
        with pytest.raises(ConfigError, match="one of the two"):
            reduction_for_macs(model, **wrong)
