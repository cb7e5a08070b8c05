"""LeMeViT as a backbone: its sizes, its states, and what it refuses."""

import copy
import re

import pytest
import torch
from tiny import images
from tiny_lemevit import ENDS, LEMEVIT, tiny_lemevit
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline import build_backbone, unmerge
from pipeline.backbone.auto_reduction import paying_reduction
from pipeline.backbone.backbone import BACKBONES, Backbone
from pipeline.backbone.build import create_vit, model_facts
from pipeline.backbone.compiled import compile_backbone
from pipeline.backbone.lemevit.sizes import SIZES
from pipeline.backbone.macs import count_macs, reduction_for_macs
from pipeline.config.load import from_plain
from pipeline.config.schema import BackboneConfig
from pipeline.errors import ConfigError
from pipeline.merging.policies import POLICIES
from pipeline.model import TASKS
from pipeline.plan.resolve import resolve
from pipeline.token_state import Carried

SIDES = [16, 16, 8, 4, 2]


def numbers_of(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "millions"), [("tiny", 8.64), ("small", 16.40), ("base", 53.10)])
def test_a_size_has_the_papers_parameters(name, millions):
    """With the head of 1000 classes."""
    with torch.device("meta"):
        model = build_backbone(f"lemevit_{name}")
    head = (model.embed_dim + 1) * 1000
    assert numbers_of(model) + head == pytest.approx(millions * 1e6, rel=0.01)
    assert (model.grid, model.num_prefix, model.patch_size) == ((7, 7), 16, (32, 32))


def test_weights_are_shared_by_all_tokens():
    """More meta tokens add their own numbers, and nothing else."""
    few, many = (tiny_lemevit(num_meta=count) for count in (4, 11))
    assert numbers_of(many) - numbers_of(few) == 7 * LEMEVIT["widths"][0]


def test_the_states_of_the_stages():
    model = tiny_lemevit()
    with torch.no_grad():
        output = model(images(), taps=ENDS)
    assert len(output.taps) == 5 and model.plan.ends == tuple(ENDS)
    assert model.plan.strides == (4, 4, 8, 16, 32)
    for tap, side, width in zip(output.taps, SIDES, LEMEVIT["widths"], strict=True):
        assert tap.tokens.shape == (2, 4 + side * side, width) and tap.grid == (side, side)
        assert tap.num_prefix == 4 and torch.equal(tap.size, torch.ones(2, 4 + side * side))
        assert unmerge(tap).shape == (2, width, side, side), "of the patches alone"
    assert output.final.tokens.shape == (2, 4 + 4, 40) and output.final.grid == model.grid == (2, 2)
    assert model.widths == (16, 16, 16, 24, 32, 40, 40)
    meta, patches = output.taps[-1].tokens.tensor_split([4], dim=1)
    normed = torch.cat([model.norm_c(meta), model.norm(patches.mT).mT], 1)
    assert torch.equal(output.final.tokens, normed)


def test_images_of_another_size_and_shape_go_through():
    with torch.no_grad():
        state = tiny_lemevit()(images(2, 96)[..., :64]).final
    assert state.grid == (3, 2) and state.tokens.shape == (2, 4 + 6, 40)


def test_the_head_reads_the_mean_of_the_patches_plus_that_of_the_meta_tokens():
    model = tiny_lemevit()
    task = TASKS.build("classification", model, num_classes=5)
    with torch.no_grad():
        output = model(images())
        tokens = output.final.tokens
        expected = task.head(tokens[:, 4:].mean(1) + tokens[:, :4].mean(1))
        torch.testing.assert_close(task.logits(output), expected)
    with pytest.raises(ConfigError, match="pooling 'map' needs a backbone that pools by attention"):
        TASKS.build("classification", model, num_classes=5, pool="map")


@pytest.mark.parametrize("options", [{}, {"layer_scale": 0.1, "num_meta": 7}, {"kinds": "CSDSD"}], ids=str)
def test_the_formula_of_macs_agrees_with_the_counter(options):
    model = tiny_lemevit(**options)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(images(1))
    found = count_macs(model)
    assert found.flops == counter.get_total_flops()
    assert found.tokens == (256, 256, 256, 64, 16, 4, 4) and model.tokens_at_start(model.grid) == 256
    assert found.total == found.embed + sum(found.blocks)


@pytest.mark.parametrize("policy", [name for name in POLICIES.names() if POLICIES.build(name).merges])
def test_a_policy_that_merges_is_refused_by_name_with_what_would_work(policy):
    with pytest.raises(ConfigError) as refused:
        with torch.device("meta"):
            build_backbone("lemevit_tiny", policy=policy)
    message = str(refused.value)
    assert f"'{policy}' cannot serve 'lemevit_tiny'" in message and "convolutions" in message
    assert "give policy 'none', or one of timm's ViTs" in message


def test_a_config_that_merges_it_is_refused_before_anything_is_built():
    plain = {
        "backbone": {"name": "lemevit_small"},
        "tasks": {"a": {"type": "classification", "data": {"schema": "imagenet", "train": "t.tar"}}},
        "train": {"steps": 10, "mode": "backbone"},
        "merging": {"policy": "tome", "reduction": 8},
        "output": "runs/x",
    }
    config = from_plain(plain)
    with pytest.raises(ConfigError, match="merging: merge policy 'tome' cannot serve 'lemevit_small'"):
        resolve(config, 1, model_facts(config.backbone))
    none = from_plain(plain | {"merging": {}})
    assert resolve(none, 1, model_facts(none.backbone)).total_steps == 10


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"pretrained": True}, "no weights of 'lemevit_tiny' can be downloaded"),
        ({"proportional_attention": "never"}, "proportional_attention is about merged tokens"),
        ({"options": {"in_chans": 4}}, "in_chans is 4, and images of a run have three channels"),
        ({"img_size": 100}, "input 100x100 does not divide by the patch 32x32; nearest: 96x96"),
        ({"options": {"embed_dim": 4}}, "embed_dim.*its options: .*depths, widths, kinds"),
        ({"options": {"img_size": 64}}, "'img_size' is not given here; set backbone.img_size"),
    ],
    ids=str,
)
def test_settings_that_it_cannot_have_are_refused(backbone, message):
    with pytest.raises(ConfigError, match=message):
        model_facts(BackboneConfig(**{"name": "lemevit_tiny"} | backbone))


@pytest.mark.parametrize(
    "options",
    [
        {"kinds": "CDDX"},
        {"kinds": ""},
        {"depths": [1, 1, 1, 1]},
        {"depths": [1, 1, 1, 1, 0]},
        {"depths": [1, 1, 1, 1, 10**6]},
        {"depths": "11111"},
        {"widths": [16, 24, 24, 32, 40]},
        {"widths": [16, 16, 24, 32, 10**9]},
        {"widths": [9, 9, 9, 9, 9], "head_dim": 9},
        {"head_dim": 7},
        {"head_dim": 0},
        {"num_meta": 0},
        {"num_meta": 10**9},
        {"mlp_ratio": 0},
        {"mlp_ratio": 1e9},
        {"layer_scale": 0},
        {"in_chans": 0},
    ],
    ids=str,
)
def test_sizes_that_cannot_be_built_are_refused_before_they_are(options):
    with pytest.raises(ConfigError):
        build_backbone("lemevit_tiny", timm_options=LEMEVIT | options)


def test_what_needs_merging_or_timm_is_refused():
    model = tiny_lemevit()
    with pytest.raises(ConfigError, match="merges no tokens.*no merge points"):
        model(images(), merge_points_from=0)
    with pytest.raises(ConfigError, match="nothing travels with tokens"):
        model(images(), carried={"x": Carried(torch.zeros(2, 8, 1), "mean")})
    with pytest.raises(ConfigError, match="unmerge is 'x'"):
        model(images(), unmerge="x")
    with pytest.raises(ConfigError, match="taps are .*7.*of the 7"):
        model(images(), taps=[7])
    with pytest.raises(ConfigError, match="normalised floats"):
        model(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="merges no tokens, so no reduction reaches"):
        reduction_for_macs(model, 0.5)
    with pytest.raises(ConfigError, match="'lemevit_base' is none of timm's models"):
        create_vit("lemevit_base")
    assert model.schedule(model.grid, 8) == (0,) * 7 and paying_reduction(model, 8) == [0] * 7


def test_a_stage_of_one_patch_is_refused_where_it_has_no_scale_and_no_statistics():
    small = tiny_lemevit(img_size=32)
    with torch.no_grad():
        assert small(images(1, 32)).final.grid == (1, 1)
    with pytest.raises(ConfigError, match="in its last stage this one has a single patch"):
        small.train()(images(1, 32))
    assert small(images(2, 32)).final.tokens.isfinite().all()
    dual = tiny_lemevit(img_size=32, kinds="CDDDD")
    with pytest.raises(ConfigError, match=r"dual cross-attention \(D\) gets one patch"):
        dual(images(2, 32))


def test_images_may_have_other_channels_in_a_loop_of_ones_own():
    model = tiny_lemevit(in_chans=5)
    with torch.no_grad():
        assert model(torch.randn(1, 5, 64, 64)).final.tokens.isfinite().all()
    with pytest.raises(ConfigError, match=re.escape("give [batch, 5, height, width]")):
        model(images())


def test_the_gradient_reaches_every_weight():
    model = tiny_lemevit(layer_scale=0.1, drop_path=0.0).train()
    tokens = model(images()).final.tokens
    (tokens.mean(1) @ torch.linspace(-1, 1, 40)).pow(2).sum().backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert idle == [] and all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_checkpointing_changes_no_gradient_and_no_running_statistics():
    plain = tiny_lemevit().train()
    saving = copy.deepcopy(plain)
    saving.grad_checkpointing = True
    for model in (plain, saving):
        model(images()).final.tokens.pow(2).sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    for one, other in zip(plain.buffers(), saving.buffers(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["model", "blocks"])
def test_it_compiles_and_gives_the_same(how):
    torch.compiler.reset()
    plain = tiny_lemevit()
    compiled = copy.deepcopy(plain)
    compile_backbone(compiled, how, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images()).final.tokens, plain(images()).final.tokens)
    with pytest.raises(ConfigError, match="compiled already"):
        compile_backbone(compiled, how)
    torch.compiler.reset()


def test_the_way_into_a_stage_learns_at_the_rate_of_its_first_block():
    model = tiny_lemevit()
    layers = model.layers()
    assert len(layers) == model.depth + 1
    of = {id(part): number for number, parts in enumerate(layers) for part in parts}
    assert [of[id(entry)] for entry in model.entries] == [0, 1, 3, 4, 5] == list(model.plan.starts)
    inside = [parameter for parts in layers for part in parts for parameter in part.parameters()]
    before = {id(model.meta_tokens), *(id(parameter) for parameter in model.stem.parameters())}
    assert {id(parameter) for parameter in model.parameters()} - {id(own) for own in inside} == before
    assert len({id(own) for own in inside}) == len(inside)


def test_a_backbone_of_ones_own_has_a_name_in_a_config(monkeypatch):
    """What BACKBONES promises: a class with a name, and `backbone.name` gives it."""
    monkeypatch.setattr(BACKBONES, "_factories", dict(BACKBONES._factories))

    @BACKBONES.register("my_lemevit")
    def build(policy, *, img_size=None, drop_path=0.0, grad_checkpointing=False, num_meta: int = 2):
        """A tiny one under a name of its own."""
        return tiny_lemevit(num_meta=num_meta, img_size=img_size or 64)

    model = build_backbone("my_lemevit", img_size=96, timm_options={"num_meta": 3})
    assert isinstance(model, Backbone) and model.num_prefix == 3 and model.grid == (3, 3)
    assert model_facts(BackboneConfig(name="my_lemevit")).num_prefix == 2
    with pytest.raises(ConfigError, match="num_meta is 'x'; give a value of type int"):
        build_backbone("my_lemevit", timm_options={"num_meta": "x"})


def test_the_names_are_those_of_the_table():
    assert sorted(SIZES) == [name for name in BACKBONES.names() if name.startswith("lemevit")]
