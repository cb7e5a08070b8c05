"""What `patch` promises of any model of timm's and of torch hub's DINOv2 and DINOv3: it is the same object,
whose methods and keys stay; at r = 0 it computes what the library does; `unpatch` leaves nothing behind."""

import copy
import pickle
from dataclasses import replace

import pytest
import timm
import tiny_torch_hub
import torch
from tiny import IMG, OF_IMAGES, PREFIXES, ROTARY, SIZES, UNLIKE_AT_ZERO, generator, images

import dtem
from pipeline.backbone.metric import is_embedding
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.backbone.patching.patch import traits_in
from pipeline.backbone.rotary import RULES, RotaryRule
from pipeline.errors import ConfigError
from pipeline.merging.policies import POLICIES

NAFLEX = {
    "naflex: average pooling": ("naflexvit_base_patch16_gap", {}),
    "naflex: attention pooling": ("naflexvit_base_patch16_siglip", {}),
    "naflex: class token": ("naflexvit_base_patch16_radio_v3", {}),
    "naflex: rotary positions": ("naflexvit_base_patch16_gap", {"rope_type": "axial"}),
    "naflex: rotary positions of each block": ("naflexvit_base_patch16_gap", {"rope_type": "mixed"}),
}
EACH_BLOCK = "rope-vit: rotary positions of each block"
HUB = [*tiny_torch_hub.MODELS]
KINDS = [*PREFIXES, *NAFLEX, *HUB]
MODELS = pytest.mark.parametrize("kind", KINDS)
SOME = pytest.mark.parametrize(
    "kind",
    ["class token", "attention pooling", ROTARY[1], ROTARY[-1], "naflex: attention pooling", *HUB[1:3]],
)


def library_model(kind):
    """The library's own model with random weights everywhere, also in what starts at zero or one."""
    if kind in HUB:
        return tiny_torch_hub.library_model(kind)
    torch.manual_seed(0)
    if kind in NAFLEX:
        name, options = NAFLEX[kind]
        sizes = {key: value for key, value in SIZES.items() if key != "patch_size"}
        model = timm.create_model(name, num_classes=7, **sizes | options)
    else:
        name, options = PREFIXES[kind]
        model = timm.create_model(name, num_classes=7, img_size=IMG, **SIZES | options)
    draw = generator(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model.eval()


def outputs(model, x):
    with torch.no_grad():
        if not hasattr(model, "forward_intermediates"):
            features = model.forward_features(x)
            pairs = model.get_intermediate_layers(x, n=[0, 2], return_class_token=True, reshape=True)
            names = sorted(features.keys() - {"masks", "x_norm_clstoken"})
            named = [features[name] for name in names]
            return [model(x), *named[:1], features["x_norm_clstoken"], *named[1:], *sum(pairs, ())]
        final, blocks = model.forward_intermediates(x, [0, 2], norm=True)
        features = model.forward_features(x)
        return [model(x), features, model.forward_head(features), final, *blocks]


@pytest.mark.parametrize(
    ("kind", "policy"),
    [(k, p) for k in KINDS for p in OF_IMAGES if k == "class token" or p in UNLIKE_AT_ZERO],
)
def test_no_reduction_is_the_library_and_unpatch_restores_it(kind, policy):
    model, x = library_model(kind), images()
    before, keys, library = outputs(model, x), list(model.state_dict()), type(model)
    assert dtem.patch(model, policy, reduction=0) is model
    assert isinstance(model, library) and [key for key in model.state_dict() if not is_embedding(key)] == keys
    torch.testing.assert_close(outputs(model, x), before, atol=1e-5, rtol=1e-5)
    assert dtem.unpatch(model) is model
    assert type(model) is library and list(model.state_dict()) == keys
    for now, then in zip(outputs(model, x), before, strict=True):
        assert torch.equal(now, then)


@MODELS
def test_merged_features_have_the_shapes_of_the_library(kind):
    model, x = library_model(kind), images()
    before = outputs(model, x)
    dtem.patch(model, "tome", reduction=1 if kind in NAFLEX else 8)
    after = outputs(model, x)
    assert [now.shape for now in after] == [then.shape for then in before]
    assert not torch.equal(after[0], before[0]) and all(now.isfinite().all() for now in after)
    torch.testing.assert_close(after[0], after[2], atol=1e-5, rtol=1e-5)


@SOME
def test_forwards_keep_nothing_and_copies_are_models_of_their_own(kind):
    """Two forwards, then two backwards; a copy, a pickle."""
    model = dtem.patch(library_model(kind), "dtem", reduction=2)
    x, y = images(), images(seed=2)
    known = set(vars(model))
    first, second = model(x), model(y)
    model.reduction = 1
    third = model(x)
    assert set(vars(model)) == known and not torch.equal(third, first)
    second.sum().backward()
    once = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    model.reduction = 2
    model(y).sum().backward()
    again = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(once) == len(again) and all(map(torch.equal, once, again))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(other, MergingModel) and torch.equal(other(x), first)
        assert not ({id(part) for part in other.modules()} & {id(part) for part in model.modules()})
        dtem.unpatch(other)
    assert torch.equal(model(x), first)


@pytest.mark.parametrize(
    ("kind", "rule"),
    [
        ("class token", None),
        (EACH_BLOCK, RotaryRule("mean_rotation")),
        *(
            pytest.param(kind, rule, marks=pytest.mark.slow)
            for kind, rule in [
                *((kind, None) for kind in (ROTARY[1], "naflex: attention pooling", *HUB[1:3])),
                *((EACH_BLOCK, RotaryRule(name)) for name in RULES if not name.startswith("mean_")),
            ]
        ),
    ],
)
def test_it_compiles_whole_and_is_exported(kind, rule):
    model, x = dtem.patch(library_model(kind), "dtem", reduction=2, rotary=rule), images()
    with torch.no_grad():
        expected = model(x)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), expected, atol=1e-4, rtol=1e-4)
        shapes: tuple = ({0: torch.export.Dim("batch", min=1)},)
        shapes = (shapes,) if kind in HUB else shapes  # its forward takes *inputs
        program = torch.export.export(model, (x,), dynamic_shapes=shapes)
        torch.testing.assert_close(program.module()(x[:1]), model(x[:1]), atol=1e-4, rtol=1e-4)


def patches_with_padding():
    """Patches of an image of 5x6, and of one of 4x6 with six more that are padding."""
    where = torch.cartesian_prod(torch.arange(5), torch.arange(6)).expand(2, -1, -1).clone()
    valid = torch.arange(30) < torch.tensor([[30], [24]])
    where[1, 24:] = 0
    return {
        "patches": torch.randn(2, 30, 16 * 16 * 3, generator=generator(4), dtype=torch.float64),
        "patch_coord": where,
        "patch_valid": valid,
    }


RULES_OF = {kind: RULES if "rotary" in kind else ["mean_rotation"] for kind in NAFLEX}


@pytest.mark.parametrize(
    ("kind", "rule", "policy"),
    [
        *(
            (kind, rule, policy)
            for kind, rules in RULES_OF.items()
            for rule in rules
            for policy in ("tome", "dtem")
            if rule != "mean_coordinate"
        ),
        ("naflex: rotary positions", "mean_rotation", "vid_tldr"),
        ("naflex: class token", "mean_rotation", "evit"),
        ("naflex: class token", "mean_rotation", "diffrate"),
        *(
            ("naflex: average pooling", "mean_rotation", policy)
            for policy in ("atc", "mutual", "pitome", "tofu")
        ),
        ("naflex: class token", "mean_rotation", "mctf"),
        ("naflex: rotary positions of each block", "mean_rotation", "mctf"),
    ],
)
def test_an_image_merges_with_padding_as_without(kind, rule, policy):
    """What it loses is reckoned from its own patches, whatever the batch that it is in; in float64, as the
    choices of one block depend on those before."""
    model, batch = library_model(kind).double(), patches_with_padding()
    alone = {name: values[1:, :24] for name, values in batch.items()}
    other = {**batch, "patches": batch["patches"].clone()}
    other["patches"][1, 24:] = 100.0
    with torch.no_grad():
        before = model(batch)
        dtem.patch(model, policy, reduction=0, rotary=RotaryRule(rule, bias=rule == "mean_rotation"))
        torch.testing.assert_close(model(batch), before, atol=1e-9, rtol=1e-9)
        for proportional in ("always", "never"):
            model.merging = replace(model.merging, proportional_attention=proportional)
            for reduction in (3, 12, 0.7, 0.5, [0, 5, 1], (4, -1)):
                model.reduction = reduction
                padded = model(batch)
                torch.testing.assert_close(padded[1:], model(alone), atol=1e-7, rtol=1e-7)
                assert torch.equal(model(other), padded), "what padding holds changes nothing"
                assert not torch.allclose(padded, before, atol=1e-5)
                state = model.encode(*batch.values()).final
                if model.merging.policy.conserves_size:
                    sizes = state.size.sum(dim=1) - state.num_prefix
                    assert torch.equal(sizes, torch.tensor([30.0, 24.0]))


@pytest.mark.parametrize("policy", OF_IMAGES)
def test_each_image_loses_the_number_that_its_own_patches_give(policy):
    """Or the policy is refused, as it asks for one grid."""
    asks = "class_token" in POLICIES.build(policy).requires
    kind = "naflex: class token" if asks else "naflex: average pooling"
    model, batch = library_model(kind).double(), patches_with_padding()
    if not POLICIES.build(policy).requires <= traits_in(model, RotaryRule()):
        with pytest.raises(ConfigError, match=f"'{policy}' cannot serve NaFlexVit: it needs one grid"):
            dtem.patch(model, policy)
        return
    dtem.patch(model, policy, reduction=[4, 0, 0])
    for reduction, left in (([4, 0, 0], (26, 20)), ([14, 14, 14], (16, 12)), (0.75, (22, 18))):
        model.reduction = reduction
        one = [reduction[0], 0, 0] if isinstance(reduction, list) else reduction
        state = model.encode(*batch.values(), taps=[0], reduction=one).taps[0]
        valid = state.patch_size > 0
        assert tuple(valid.sum(dim=1).tolist()) == (left if policy != "none" else (30, 24))
        assert torch.equal(valid, valid.sort(dim=1, descending=True).values), "padding is behind"


@pytest.mark.parametrize("relaxation", ["soft", "straight_through"])
def test_a_relaxed_merge_leaves_padding_alone(relaxation):
    model, batch = library_model("naflex: average pooling").double(), patches_with_padding()
    dtem.patch(model, "dtem", reduction=3, learns=True, relaxation=relaxation)
    alone = {name: values[1:, :24] for name, values in batch.items()}
    model.train()
    one = [3, 0, 0]
    padded, own = (model.encode(*x.values(), reduction=one).final for x in (batch, alone))
    live = own.num_active
    torch.testing.assert_close(padded.size[1:, :live], own.size[:, :live])
    torch.testing.assert_close(padded.tokens[1:, :live], own.tokens[:, :live])
    model(batch).square().sum().backward()
    metric = model.blocks[0].metric.weight.grad
    assert metric.isfinite().all() and metric.abs().max() > 0


def test_coordinates_need_one_grid_for_all_images():
    model = library_model("naflex: rotary positions").double()
    dtem.patch(model, "tome", rotary=RotaryRule("mean_coordinate"))
    one = {name: values[:1] for name, values in patches_with_padding().items()}
    with pytest.raises(ConfigError, match="one grid for all images"):
        model(one)


def test_naflex_patches_without_a_mask_are_refused():
    model, batch = library_model("naflex: average pooling").double(), patches_with_padding()
    dtem.patch(model, "tome")
    batch.pop("patch_valid")
    with pytest.raises(ConfigError, match="give patch_valid"):
        model(batch)
    with pytest.raises(ConfigError, match="give patch_coord"):
        model({**batch, "patch_valid": torch.ones(2, 30)} | {"patch_coord": None})
    with pytest.raises(ConfigError, match="give output_fmt='NLC'"):
        model.forward_intermediates(patches_with_padding())
    found = model.forward_intermediates(patches_with_padding(), [1], output_fmt="NLC", output_dict=True)
    assert found["image_intermediates"][0].shape == (2, 30, 48) and "patch_valid" in found


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: dtem.patch(dtem.patch(model)), "patched already"),
        (lambda model: dtem.patch(model, "tomme"), "did you mean 'tome'"),
        (lambda model: dtem.patch(model, reduction=-1), "reduction"),
        (lambda model: dtem.patch(model, unmerge="hard"), "unmerge is 'hard'"),
        (lambda model: dtem.patch(model, proportional_attention="no"), "proportional_attention is 'no'"),
        (lambda model: dtem.patch(model, tau=1), "tau"),
        (lambda model: dtem.unpatch(model), "is not patched"),
        (lambda model: dtem.patch(model.blocks), "Sequential cannot merge"),
        (lambda model: dtem.patch(timm.create_model("resnet18")), "ResNet cannot merge"),
        (lambda model: dtem.patch(timm.create_model("test_vit", attn_layer="diff")), "DiffAttention"),
        (lambda model: dtem.patch(timm.create_model("test_vit", patch_drop_rate=0.5)), "patch_drop_rate"),
        (lambda model: setattr(dtem.patch(model), "reduction", "many"), "reduction"),
        (lambda model: dtem.patch(model)(images(), is_causal=True), "mask"),
        (lambda model: dtem.patch(model).forward_intermediates(images(), [9]), "of the 3, 0 to 2"),
        (lambda model: dtem.patch(model).forward_intermediates(images(), 0), "give 1 or more"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(change, reason):
    model, x = library_model("class token"), images()
    before = model(x)
    with pytest.raises(ConfigError, match=reason):
        change(model)
    assert torch.equal((dtem.unpatch(model) if isinstance(model, MergingModel) else model)(x), before)
