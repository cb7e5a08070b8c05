"""`init="keys"`: an embedding starts at the mean over heads of the keys, so an untrained model is ToMe."""

from dataclasses import replace

import pytest
import tiny_hugging_face
import tiny_torch_hub
import torch
from safetensors.torch import save_file
from tiny import IMG, PREFIXES, SIZES, generator, images, tiny_vit
from torch import nn

import dtem
from dtem import build_backbone
from launch.saved.run import build, drawn_run
from pipeline.backbone.adapters.public import load_adapter, save_adapter
from pipeline.backbone.build import create_vit
from pipeline.backbone.key_start import mean_over_heads, start_embeddings
from pipeline.backbone.metric import EMBEDDINGS, EmbeddingSpec
from pipeline.backbone.weights.load import load_weights
from pipeline.errors import ConfigError
from pipeline.merging.policies import POLICIES
from pipeline.model import build_model

KEYS = {"init": "keys"}
REFUSED = {
    "query and key norm": "k_norm",
    "two attentions side by side": "a norm of its own",
    "attention and mlp side by side": "k_norm",
    "sapiens2: rotary positions, keys for several queries": "k_norm",
}
"""What is in front of the patches, or how the rest differs -> why its keys are no linear layer."""
WITHOUT_NORM = {
    f"{kind}, no norm of keys": (PREFIXES[kind][0], PREFIXES[kind][1] | {"qk_norm": False})
    for kind in list(REFUSED)[2:]
}
KINDS = PREFIXES | WITHOUT_NORM


def timm_model(kind):
    """timm's own, with random weights everywhere."""
    name, options = KINDS[kind]
    torch.manual_seed(0)
    return tiny_torch_hub.drawn(create_vit(name, img_size=IMG, timm_options=SIZES | options)).eval()


def same_merges(model, **inputs):
    """The merges of a model as ToMe, and with an embedding that starts at the keys, are the same ones."""
    found = []
    for policy, options in (("tome", {}), ("dtem", KEYS)):
        dtem.patch(model, policy, reduction=5, **options)
        tower = getattr(model, "tower", model)
        with torch.no_grad():
            found.append(tower.encode(*inputs.values()).final.merges)
        dtem.unpatch(model)
    assert len(found[0]) == 3
    for tome, ours in zip(*found, strict=True):
        assert all(
            torch.equal(getattr(tome, name), getattr(ours, name)) for name in ("keep", "source", "slot")
        )


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in REFUSED])
def test_an_untrained_model_of_timm_is_tome(kind):
    same_merges(timm_model(kind).double(), images=images().double())


@pytest.mark.parametrize("kind", tiny_torch_hub.MODELS)
def test_an_untrained_model_of_torch_hub_is_tome(kind):
    same_merges(tiny_torch_hub.library_model(kind).double(), images=images().double())


@pytest.mark.parametrize("name", tiny_hugging_face.TOWERS)
def test_an_untrained_model_of_transformers_is_tome(name):
    batch = tiny_hugging_face.inputs(name)
    batch["pixel_values"] = batch["pixel_values"].double()
    same_merges(tiny_hugging_face.library_model(name).double(), **batch)


@pytest.mark.parametrize("kind", REFUSED)
def test_keys_that_no_embedding_gives_are_refused_by_name_and_change_nothing(kind):
    model, x = timm_model(kind), images()
    before, library = model.forward_features(x), type(model)
    with pytest.raises(ConfigError, match=f"{REFUSED[kind]}.*give init='random', or policy 'tome'"):
        dtem.patch(model, "dtem", reduction=5, **KEYS)
    assert type(model) is library and torch.equal(model.forward_features(x), before)


def test_a_width_that_cannot_hold_the_keys_is_refused():
    with pytest.raises(ConfigError, match="has 24 channels and a head's keys 16.*give embed_dim=16"):
        dtem.patch(timm_model("class token"), "dtem", embed_dim=24, **KEYS)
    dtem.patch(timm_model("class token"), "dtem", embed_dim=16, **KEYS)
    drawn, of_keys = (POLICIES.build("dtem", **options) for options in ({}, KEYS))
    assert (drawn.embedding_dim(1024, 64), of_keys.embedding_dim(1024, 64)) == (128, 64)


def test_keys_of_numbers_that_are_no_weights_are_refused():
    model = timm_model("class token")
    model.blocks[2].attn.qkv = nn.Sequential(model.blocks[2].attn.qkv)
    with pytest.raises(ConfigError, match="what makes them is Sequential, not a linear layer of floats"):
        dtem.patch(model, "dtem", **KEYS)


def test_another_start_is_refused():
    with pytest.raises(ConfigError, match="init is 'queries'; give one of random, keys"):
        POLICIES.build("dtem", init="queries")


def vit(options=KEYS, **arguments):
    name, timm_options = PREFIXES["class token"]
    return build_backbone(
        name, policy="dtem", img_size=IMG, timm_options=SIZES | timm_options, **options, **arguments
    )


def at_keys(model):
    """Whether the embedding of every block is the mean of its keys."""
    return all(
        all(map(torch.equal, (block.metric.weight, block.metric.bias), mean_over_heads(block)))
        for block in model.blocks
    )


@pytest.mark.parametrize("kind", EMBEDDINGS)
def test_every_kind_of_embedding_starts_there(kind):
    model = vit(embedding=EmbeddingSpec(kind, ("a", "b")))
    for task in ("a", "b"):
        folded = [block.metric.fold(task) for block in model.blocks]
        for block, own in zip(model.blocks, folded, strict=True):
            assert torch.equal(own["weight"], mean_over_heads(block)[0])
    x = images()
    with torch.no_grad():
        found = [model(x, reduction=5, task=task).final.tokens for task in ("a", "b")]
    assert torch.equal(*found)


def test_weights_that_come_later_bring_their_own_keys_and_taught_embeddings_stay():
    model, other = vit(), timm_model("class token")
    assert at_keys(model)
    before = model.blocks[0].metric.weight.clone()
    report = load_weights(model, other.state_dict())
    assert at_keys(model) and not torch.equal(model.blocks[0].metric.weight, before)
    assert set(report.started) == {
        f"blocks.{i}.metric.{name}" for i in range(3) for name in ("weight", "bias")
    }
    assert "start at the keys" in str(report) and not set(report.started) & set(report.missing)
    taught = {key: torch.randn(value.shape) for key, value in model.state_dict().items() if ".metric." in key}
    for given in (taught, {**other.state_dict(), **taught}):
        assert not load_weights(model, given).started
        assert all(torch.equal(model.state_dict()[key], value) for key, value in taught.items())
    assert not load_weights(vit({}), other.state_dict()).started, "one that is drawn stays as it is drawn"


def test_an_adapter_is_what_was_taught_and_says_how_it_started(tmp_path):
    model = dtem.patch(timm_model("class token"), "dtem", reduction=5, **KEYS)
    with torch.no_grad():
        for block in model.blocks:
            block.metric.weight.add_(0.1 * torch.randn_like(block.metric.weight))
    save_adapter(model, tmp_path / "adapter")
    assert load_adapter(tmp_path / "adapter").config.merging.options == KEYS
    again = dtem.patch(timm_model("class token"), "dtem", adapter=tmp_path / "adapter")
    for own, other in zip(again.blocks, model.blocks, strict=True):
        assert torch.equal(own.metric.weight, other.metric.weight)


def test_a_run_starts_at_the_keys_of_its_weights_and_so_does_its_untrained_control(tiny_run, tmp_path):
    merging = {"policy": "dtem", "reduction": 2, "options": KEYS}
    drawn = build_model(tiny_run(merging=merging))
    shaken = tiny_torch_hub.drawn(drawn.backbone)
    weights = {key: value for key, value in shaken.state_dict().items() if ".metric." not in key}
    save_file(weights, tmp_path / "weights.safetensors")
    config = tiny_run(merging=merging)
    config = replace(config, backbone=replace(config.backbone, weights=str(tmp_path / "weights.safetensors")))
    model = build_model(config)
    assert at_keys(model.backbone)
    assert torch.equal(model.backbone.blocks[0].attn.qkv.weight, weights["blocks.0.attn.qkv.weight"])

    saved = replace(drawn_run(config), tensors=model.state_dict())
    with torch.no_grad():
        for block in model.backbone.blocks:
            block.metric.weight.add_(1.0)
    assert not at_keys(build(saved).backbone)
    assert at_keys(build(saved, "dtem_untrained", seed=3).backbone)


def test_it_learns_from_there():
    """The gradient of a relaxed merge reaches it, as any embedding."""
    model = tiny_vit("dtem").train()
    for block in model.blocks:
        block.policy.starts_at_keys = True
    assert len(start_embeddings(model)) == 6 and at_keys(model)
    state = model(images()).final
    weights = torch.randn(state.size.shape, generator=generator(2))
    (state.size * weights).sum().backward()
    assert all(block.metric.weight.grad.abs().max() > 0 for block in model.blocks)
