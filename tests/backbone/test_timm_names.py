"""timm's names of models that merge: what they build, and what comes back from a folder and the hub."""

import importlib
import json

import pytest
import timm
import torch
from fake_hub import running
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from tiny import SIZES, images

from pipeline import build_backbone, load_adapter, patch, save_adapter, unpatch
from pipeline.backbone.timm_names import SUFFIX, register_names
from pipeline.errors import CheckpointError, ConfigError

NAME = "deit_tiny_patch16_224"
OPTIONS = {**SIZES, "img_size": 64, "num_classes": 5}


@pytest.fixture(scope="module", autouse=True)
def registered():
    importlib.import_module("dtem")
    register_names()


def built(name=NAME + SUFFIX, seed=0, **options):
    torch.manual_seed(seed)
    return timm.create_model(name, **OPTIONS | options).eval()


def test_a_name_gives_the_model_that_patch_gives():
    ours = built(policy="tome", reduction=(8, -0.5), policy_options={}, proportional_attention="never")
    theirs = patch(built(NAME), "tome", (8, -0.5), proportional_attention="never")
    assert type(ours) is type(theirs) and ours.reduction == (8, -0.5)
    with torch.no_grad():
        assert torch.equal(ours(images()), theirs(images()))
        assert torch.equal(unpatch(ours)(images()), unpatch(theirs)(images()))


def test_a_name_takes_an_adapter(tmp_path):
    taught = built(seed=1)
    save_adapter(taught, tmp_path, reduction=5)
    # the embeddings are drawn behind the rest, so the base is the same
    model = built(seed=1, adapter=str(tmp_path))
    assert model.reduction == 5
    assert torch.equal(model.blocks[1].metric.weight, taught.blocks[1].metric.weight)
    with pytest.raises(CheckpointError, match=f"this is {NAME} with other weights"):
        built(seed=2, adapter=str(tmp_path))
    assert built(seed=2, adapter=str(tmp_path), check_base=False, reduction=3).reduction == 3


def test_every_architecture_of_timms_vits_has_a_name():
    names = timm.list_models(module="timm_names")
    assert all(timm.is_model(name.removesuffix(SUFFIX)) for name in names)
    for name in ("vit_base_patch16_siglip_224", "eva02_tiny_patch14_224", "deit3_small_patch16_224"):
        assert name + SUFFIX in names


def test_a_backbone_is_built_of_timms_own_name():
    with pytest.raises(ConfigError, match=f"merges already; give '{NAME}' and a policy"):
        build_backbone(NAME + SUFFIX)
    with pytest.raises(ConfigError) as told:
        build_backbone("deit_tiny_patch16_22")
    assert NAME in str(told.value) and SUFFIX not in str(told.value)


@pytest.mark.parametrize("place", ["folder", "hub"])
@pytest.mark.parametrize("policy", ["dtem", "tome", "stvit"])
def test_what_timm_saves_comes_back_as_a_model_that_merges(tmp_path, place, policy):
    """With its embeddings, its policy and its reduction, through timm's own functions."""
    given = dict(policy=policy, reduction=[8, 4, 0])
    given |= {"policy_options": {"embed_dim": 7}} if policy == "dtem" else {}
    model = built(**given)
    save_for_hf(model, str(tmp_path / "out"), safe_serialization=True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architecture"] == NAME + SUFFIX and config["model_args"]["reduction"] == [8, 4, 0]
    if place == "folder":
        other = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    else:
        with running(tmp_path / "cache") as hub:
            hub.add_folder("me/vit", tmp_path / "out")
            other = timm.create_model("hf-hub:me/vit", pretrained=True).eval()
    assert other.reduction == [8, 4, 0] and other.merging.policy.name == policy
    own, theirs = model.state_dict(), other.state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[key], theirs[key]) for key in own)
    with torch.no_grad():
        assert torch.equal(other(images()), model(images()))
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, reduction=2).reduction == 2


def test_weights_without_embeddings_take_those_of_the_adapter(tmp_path):
    """Also where the repository has no safetensors."""
    taught = built(seed=1)
    save_adapter(taught, tmp_path / "own")
    save_for_hf(unpatch(taught), str(tmp_path / "base"))
    with running(tmp_path / "cache") as hub:
        hub.add_folder("me/vit", tmp_path / "base")
        config = json.loads(hub.files("me/vit")["config.json"])
        assert config["architecture"] == NAME + SUFFIX and set(hub.files("me/vit")) == {
            "config.json",
            "pytorch_model.bin",
        }
        model = timm.create_model("hf-hub:me/vit", pretrained=True, adapter=str(tmp_path / "own"))
    saved = load_adapter(tmp_path / "own").tensors["blocks.1.metric.weight"]
    assert torch.equal(model.blocks[1].metric.weight, saved)


def test_a_tag_names_timms_weights(tmp_path):
    torch.manual_seed(0)
    published = timm.create_model(NAME)
    (tmp_path / "there").mkdir()
    save_file(published.state_dict(), tmp_path / "there" / "model.safetensors")
    with running(tmp_path / "cache") as hub:
        hub.add_folder(f"timm/{NAME}.fb_in1k", tmp_path / "there")
        model = timm.create_model(f"{NAME}{SUFFIX}.fb_in1k", pretrained=True, reduction=4)
    assert model.reduction == 4 and unpatch(model).state_dict().keys() == published.state_dict().keys()
    assert torch.equal(model.blocks[11].mlp.fc1.weight, published.blocks[11].mlp.fc1.weight)


def test_embeddings_of_another_policy_are_refused(tmp_path):
    save_for_hf(built(), str(tmp_path), safe_serialization=True)
    with pytest.raises(CheckpointError, match="give the policy and the policy_options"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True, policy="tome")


@pytest.mark.parametrize("lacking", ["blocks.1.", "norm.", "pos_embed", ""])
def test_weights_that_lack_a_part_of_the_model_are_refused(tmp_path, lacking):
    """timm takes them, as they have embeddings that its own model has no place for."""
    save_for_hf(built(policy="tome"), str(tmp_path), safe_serialization=True)
    path = tmp_path / "model.safetensors"
    kept = {key: value for key, value in load_file(path).items() if not key.startswith(lacking)}
    save_file(kept | {"x": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=f"have no {lacking}"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_another_number_of_classes_leaves_the_head_as_it_is_drawn(tmp_path):
    save_for_hf(built(), str(tmp_path), safe_serialization=True)
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3).num_classes == 3


def test_a_wrong_policy_is_a_typed_error():
    with pytest.raises(ConfigError, match="unheard"):
        built(policy="unheard")
