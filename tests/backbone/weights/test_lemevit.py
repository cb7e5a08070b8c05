"""Checkpoints of LeMeViT's authors."""

import re

import pytest
import torch
from tiny_lemevit import tiny_lemevit

from pipeline import build_backbone
from pipeline.backbone.weights.load import load_weights
from pipeline.errors import CheckpointError


def as_the_authors(tensors: dict, *, meta: str = "meta_token") -> dict:
    """Our tensors by the names that their code has: blocks in stages, an MLP in a row, LayerScale as
    [1, 1, C]."""
    starts, found = [0, 1, 3, 4, 5], {}
    inside = {"position": "pos_embed", "attn.qkv_x": "attn.qkv1", "attn.qkv_c": "attn.qkv2"}
    inside |= {"mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3", "ls1.gamma": "gamma1", "ls2.gamma": "gamma2"}
    for key, value in tensors.items():
        if match := re.match(r"blocks\.(\d+)\.(.+)", key):
            stage = max(number for number, start in enumerate(starts) if start <= int(match[1]))
            name = match[2]
            for ours, theirs in inside.items():
                name = name.replace(ours, theirs)
            key = f"stages.{stage}.{int(match[1]) - starts[stage]}.{name}"
            value = value.view(1, 1, -1) if "gamma" in name else value
        key = re.sub(r"^entries\.(\d+)\.image\.", r"downsample_layers.\1.", key)
        key = re.sub(r"^entries\.(\d+)\.meta\.", rf"{meta}_downsample.\1.", key)
        key = re.sub(r"^stem\.", "downsample_layers.0.", key)
        found[{"meta_tokens": f"{meta}s"}.get(key, key)] = value
    return found


@pytest.mark.parametrize("meta", ["meta_token", "prototype"])
def test_the_authors_checkpoints_are_read(meta):
    """With the head of their classifier, in a file as DDP writes it."""
    theirs, ours = tiny_lemevit(layer_scale=0.1), tiny_lemevit(seed=1, layer_scale=0.1)
    given = as_the_authors(dict(theirs.state_dict()), meta=meta)
    assert len(given) == len(theirs.state_dict()) and not any("blocks." in key for key in given)
    report = load_weights(ours, {f"module.{key}": value for key, value in given.items()})
    assert report.missing == report.left == ()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_weights_of_another_model_are_refused():
    model, vit = tiny_lemevit(), build_backbone("vit_tiny_patch16_224", timm_options={"depth": 2})
    with pytest.raises(CheckpointError):
        load_weights(model, vit.state_dict())
    with pytest.raises(CheckpointError):
        load_weights(vit, as_the_authors(dict(model.state_dict())))
    other = tiny_lemevit(depths=[1, 2, 1, 2, 2])
    with pytest.raises(CheckpointError, match="blocks"):
        load_weights(other, as_the_authors(dict(model.state_dict())))
