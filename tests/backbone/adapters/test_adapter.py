"""What an adapter carries to another model, and which models it refuses."""

import hashlib
import logging
import warnings
from dataclasses import replace

import pytest
import torch
from timm.models import create_model
from tiny import images, tiny_vit
from torch import nn

from pipeline import build_backbone, patch, save_adapter, unpatch
from pipeline.backbone.adapters.adapter import Adapter
from pipeline.backbone.adapters.collect import collect_adapter
from pipeline.backbone.adapters.digest import base_digest
from pipeline.backbone.metric import EMBEDDINGS, EmbeddingSpec
from pipeline.backbone.rotary import RotaryRule
from pipeline.backbone.weights.load import load_weights
from pipeline.errors import CheckpointError, ConfigError
from pipeline.merging.unmerge import slots

TASKS = ("a", "b")


def shaken(model, kind=".metric."):
    """The model with other values in the tensors whose names hold `kind`."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if kind in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def groups(model, task=None):
    """[B, N]: which slot each patch went to."""
    return slots(model(images().double(), task=task).final)


@pytest.mark.parametrize("kind", EMBEDDINGS)
@pytest.mark.parametrize("task", TASKS)
def test_a_model_with_the_adapter_merges_as_the_one_that_was_taught(kind, task):
    """Folded for a task, whatever its embeddings share. In float64, as folding rounds otherwise."""
    own = shaken(tiny_vit("dtem", embedding=EmbeddingSpec(kind, TASKS, 4))).double().eval()
    other = tiny_vit("dtem").double().eval()
    base = {key: value for key, value in own.state_dict().items() if ".metric." not in key}
    other.load_state_dict(base, strict=False)
    before = {key: value.clone() for key, value in own.state_dict().items()}
    with torch.no_grad():
        wanted, drawn = groups(own, task), groups(other)
        collect_adapter(own, task=task).apply_to(other)
        assert torch.equal(groups(other), wanted) and not torch.equal(drawn, wanted)
    assert all(torch.equal(value, before[key]) for key, value in own.state_dict().items())


def test_load_weights_takes_the_tensors_of_an_adapter_too(taught):
    other = tiny_vit("dtem", seed=5)
    report = load_weights(other, collect_adapter(taught).tensors)
    assert len(report.taken) == 6 and torch.equal(
        other.blocks[1].metric.weight, taught.blocks[1].metric.weight
    )


def test_policy_options_and_width_of_the_embedding_are_kept():
    model = tiny_vit("dtem_reference")
    config = collect_adapter(model).config
    assert config.merging.policy == "dtem" and config.merging.reduction == 8
    assert config.merging.options == {"split": "reference", "relaxation": "soft"}
    assert config.base.architecture == "deit_tiny_patch16_224" and (config.base.width, config.base.depth) == (
        48,
        3,
    )
    assert config.pixels is not None and config.pixels.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("variant", ["none", "tome", "random"])
def test_a_policy_that_does_not_learn_has_no_adapter(variant, taught):
    with pytest.raises(ConfigError, match="no metric embedding"):
        collect_adapter(tiny_vit(variant))
    with pytest.raises(ConfigError, match="no metric embedding"):
        collect_adapter(taught).apply_to(tiny_vit(variant))


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Sequential()])
def test_a_model_without_blocks_is_refused(model, taught):
    with pytest.raises(ConfigError, match="has no `blocks`"):
        collect_adapter(taught).apply_to(model)


def test_an_adapter_of_another_model_is_refused_by_both_names(taught, caplog):
    """A model that was fine-tuned from the base is taken when asked for, with a warning."""
    adapter, tuned = (
        collect_adapter(taught, base_model="timm/theirs"),
        shaken(tiny_vit("dtem", seed=3), "mlp"),
    )
    before = {key: value.clone() for key, value in tuned.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=r"taught on timm/theirs .*, and this is deit_tiny_patch16_224 with"
    ):
        adapter.apply_to(tuned)
    assert all(torch.equal(value, before[key]) for key, value in tuned.state_dict().items())
    with caplog.at_level(logging.WARNING):
        adapter.apply_to(tuned, check_base=False)
    assert "measure what it keeps" in caplog.text
    assert torch.equal(tuned.blocks[2].metric.weight, taught.blocks[2].metric.weight)


@pytest.mark.parametrize(
    ("options", "said"), [({"depth": 2}, "has 2 of 48"), ({"embed_dim": 36}, "has 3 of 36")]
)
def test_another_width_or_depth_is_refused_even_unchecked(taught, options, said):
    other = tiny_vit("dtem", timm_options=options)
    for check in (True, False):
        with pytest.raises(
            CheckpointError, match=f"has 3 blocks of 48 channels; deit_tiny_patch16_224 {said}"
        ):
            collect_adapter(taught).apply_to(other, check_base=check)


def test_another_width_of_the_embedding_says_the_option(taught):
    wide = build_backbone(
        "deit_tiny_patch16_224",
        policy="dtem",
        embed_dim=5,
        timm_options={"depth": 3, "embed_dim": 48, "num_heads": 3},
    )
    with pytest.raises(ConfigError, match="have 16 channels and the model's 5; .*embed_dim=16"):
        collect_adapter(taught).apply_to(wide)


def test_a_layer_per_task_is_not_filled_by_one(taught):
    other = tiny_vit("dtem", embedding=EmbeddingSpec("per_task", TASKS))
    with pytest.raises(ConfigError, match="EmbeddingPerTask"):
        collect_adapter(taught).apply_to(other)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.popitem(),
        lambda tensors: tensors.update({"blocks.9.metric.bias": torch.zeros(16)}),
        lambda tensors: tensors.update({"blocks.0.metric.bias": torch.zeros(15)}),
        lambda tensors: tensors.update({"blocks.0.metric.bias": torch.zeros(16, dtype=torch.int64)}),
        lambda tensors: tensors.update({"blocks.0.metric.bias": torch.full((16,), float("nan"))}),
        lambda tensors: tensors.update({"blocks.0.metric.bias": torch.zeros(16).to(torch.float8_e4m3fn)}),
    ],
)
def test_tensors_that_do_not_fit_what_is_said_are_refused(taught, change):
    adapter = collect_adapter(taught)
    tensors = dict(adapter.tensors)
    change(tensors)
    with pytest.raises(CheckpointError):
        Adapter(adapter.config, tensors)


def test_an_embedding_of_another_width_than_its_tensors_is_refused_before_it_is_made(taught):
    """A stranger's options are not to fill the memory."""
    adapter = collect_adapter(taught)
    merging = replace(adapter.config.merging, options={"embed_dim": 10**9})
    with pytest.raises(CheckpointError, match="embed_dim is 1000000000, and its tensors have 16 rows"):
        Adapter(replace(adapter.config, merging=merging), adapter.tensors)


def test_a_model_in_float16_is_told_the_way(taught):
    adapter = collect_adapter(taught)
    with pytest.raises(CheckpointError, match="patch it in float32 or bfloat16, as float16 rounds otherwise"):
        adapter.apply_to(tiny_vit("dtem", seed=3).half())


def test_values_that_the_models_numbers_cannot_hold_are_refused(taught):
    adapter, model = collect_adapter(taught), tiny_vit("dtem", seed=3).half()
    large = {key: tensor + 1e6 for key, tensor in adapter.tensors.items()}
    before = model.blocks[0].metric.weight.clone()
    with pytest.raises(CheckpointError, match="too large for torch.float16"):
        Adapter(adapter.config, large).apply_to(model, check_base=False)
    assert torch.equal(model.blocks[0].metric.weight, before)


def test_a_quantised_model_has_no_digest():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(CheckpointError, match="is quantised or sharded; save or load"):
        base_digest([quantised])


def test_the_digest_is_of_the_blocks_without_their_embeddings():
    model = tiny_vit("dtem")
    own = base_digest(model.blocks)
    same = [
        tiny_vit("none"),
        shaken(tiny_vit("dtem"), "metric"),
        shaken(tiny_vit("dtem"), "pos_embed"),
        tiny_vit("dtem").to(torch.bfloat16),
        tiny_vit("dtem").to(torch.bfloat16).float(),
        tiny_vit("dtem").double(),
    ]
    assert {base_digest(other.blocks) for other in same} == {own}
    others = [shaken(tiny_vit("dtem"), name) for name in ("blocks.2.mlp.fc1.bias", "blocks.0.norm1.weight")]
    swapped = list(model.blocks)[::-1]
    assert len({own, base_digest(swapped), *(base_digest(other.blocks) for other in others)}) == 4


def test_the_digest_is_what_the_page_says_it_is():
    """Computed here from the words of docs/adapters.md, on a plain timm model."""
    model = shaken(create_model("deit_tiny_patch16_224", depth=2, embed_dim=24, num_heads=2), "attn")
    found = hashlib.sha256()
    of_blocks = {key: value for key, value in model.state_dict().items() if key.startswith("blocks.")}
    for key, value in sorted(of_blocks.items()):
        if key.endswith("bias") and not value.any():
            continue
        found.update(
            f"{key} {list(value.shape)}\n".encode() + value.bfloat16().view(torch.uint8).numpy().tobytes()
        )
    assert base_digest(model.blocks) == found.hexdigest()


def test_a_model_with_rotary_positions_says_how_they_merge():
    """And has the digest of the library's own model."""
    sizes = {"depth": 2, "embed_dim": 48, "num_heads": 3}
    options = dict(policy="dtem", timm_options=sizes, rotary=RotaryRule("destination"))
    torch.manual_seed(0)
    adapter = collect_adapter(build_backbone("eva02_tiny_patch14_224", **options))
    torch.manual_seed(0)
    theirs = create_model("eva02_tiny_patch14_224", **sizes, num_classes=0)
    assert adapter.config.merging.rotary == "destination" and adapter.config.base.architecture.startswith(
        "eva02"
    )
    assert adapter.config.base.digest == base_digest(theirs.blocks)
    with pytest.raises(ConfigError, match="rotary positions merge by"):
        replace(adapter.config.merging, rotary="unheard")


def test_a_patched_model_merges_as_the_one_that_was_taught(tmp_path):
    """Rule of rotary positions, attention by size and reduction come with the adapter."""
    torch.manual_seed(0)
    model = create_model("eva02_tiny_patch14_224", depth=2, embed_dim=48, num_heads=3, num_classes=4).eval()
    way = dict(rotary=RotaryRule("destination"), proportional_attention="never", embed_dim=5)
    taught = patch(model, "dtem", 20, **way)
    pixels = images(size=224)
    with torch.no_grad():
        wanted = taught(pixels)
        save_adapter(taught, tmp_path)
        again = patch(unpatch(taught), adapter=tmp_path)
        assert torch.equal(again(pixels), wanted)
    assert again.merging.rotary == way["rotary"] and again.merging.proportional_attention == "never"
    assert (
        patch(unpatch(again), adapter=tmp_path, reduction=3, rotary=RotaryRule()).merging.rotary
        == RotaryRule()
    )


def test_a_model_without_memory_has_no_digest():
    with torch.device("meta"):
        model = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(CheckpointError, match="meta device"):
        base_digest(model)


def test_a_reduction_that_is_none_is_refused(taught):
    config = collect_adapter(taught).config
    with pytest.raises(ConfigError, match="reduction"):
        replace(config.merging, reduction=-1)
