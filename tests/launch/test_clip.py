"""A CLIP of open_clip, without a run: its zero-shot scores are open_clip's own, and its tokens can merge."""

import json
from dataclasses import replace

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from launch.published.contrastive import clip_run
from pipeline.backbone.adapters.public import load_adapter, save_adapter
from pipeline.data.make.digits.scenes import CLASSES
from pipeline.data.stream import build_eval_loader
from pipeline.errors import CheckpointError, ConfigError
from tasks.open_clip_bridge import clip, parts

NAME = "dtem-tiny-clip"
CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
TEMPLATES = ["a photo of a {}.", "the {}"]


@pytest.fixture(scope="module", params=["", "quick_gelu", "avg", "apart"])
def published(request, tmp_path_factory):
    """open_clip's model with drawn weights, and how we name it: its config is known under a name, as that of
    a published one."""
    folder, config = tmp_path_factory.mktemp("clip"), json.loads(json.dumps(CONFIG))
    if request.param == "quick_gelu":
        config["quick_gelu"] = True
    elif request.param == "avg":
        config["vision_cfg"]["pool_type"] = "avg"
    elif request.param == "apart":
        config["custom_text"] = True
    name = f"{NAME}{request.param}"
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{name}.json")
    torch.manual_seed(0)
    model = open_clip.create_model(name, pretrained=None).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.logit_scale.fill_(2.0)
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, folder / "w.safetensors"
    )
    yield f"open_clip:{name}@{folder / 'w.safetensors'}", model
    open_clip.factory._MODEL_CONFIG_PATHS.remove(folder / f"{name}.json")
    open_clip.factory._rescan_model_configs()


def own_logits(model, images):
    """open_clip's scores of the classes, by its own tokenizer and towers."""
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    with torch.no_grad():
        classes = torch.stack(
            [
                F.normalize(
                    model.encode_text(
                        tokenizer([text.replace("{}", name.replace("_", " ")) for text in TEMPLATES]),
                        normalize=True,
                    ).mean(0),
                    dim=-1,
                )
                for name in CLASSES
            ]
        )
        return model.logit_scale.exp() * model.encode_image(images, normalize=True) @ classes.T


def test_without_merging_the_scores_are_open_clips(published, digits):
    named, model = published
    run, ours = clip_run(named, str(digits), templates=TEMPLATES)
    data = replace(run.config.tasks["zero_shot"].data, workers=0)
    (batch, *_) = build_eval_loader("zero_shot", data, rank=0, world_size=1)
    batch = batch.to("cpu")
    with torch.no_grad():
        for reduction in (None, 0):
            found = ours.tasks["zero_shot"].infer(ours.encoder("zero_shot", reduction), batch)
            torch.testing.assert_close(found, own_logits(model, batch.images), rtol=1e-4, atol=1e-4)
        merging = clip_run(named, str(digits), templates=TEMPLATES, policy="tome")[1]
        same = merging.tasks["zero_shot"].infer(merging.encoder("zero_shot", 0), batch)
        merged = merging.tasks["zero_shot"].infer(merging.encoder("zero_shot", 2), batch)
    torch.testing.assert_close(same, found, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(merged, found, rtol=1e-3) and merged.shape == (25, 10)


def test_the_command_scores_it(published, digits, dtem, tmp_path):
    named, _ = published
    argv = ("evaluate", named, "--zero-shot", digits, "--policy", "tome", "--reduction", 2)
    said = dtem(*argv, "--out", tmp_path / "out.json", "--predictions", tmp_path / "made.jsonl")
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["scores"]["zero_shot"]["samples"] == 25 and result["schedule"]["zero_shot"] == [2, 2, 2]
    assert "policy tome" in said and len((tmp_path / "made.jsonl").read_text().splitlines()) == 25
    assert "give --zero-shot" in dtem("evaluate", named, code=2)
    assert "--data says nothing of" in dtem(*argv, "--data", digits, code=2)
    assert "take 'dtem_untrained'" in dtem(
        "evaluate", named, "--zero-shot", digits, "--policy", "dtem", code=2
    )


@pytest.mark.parametrize("attends", ["always", "never"])
def test_an_adapter_brings_its_merging(published, digits, tmp_path, attends):
    """How attention counts sizes too, without which the merged tokens would be others."""
    named, _ = published
    taught = clip_run(named, str(digits), policy="dtem_untrained")[1].backbone
    taught.proportional_attention = attends
    adapter = load_adapter(save_adapter(taught, tmp_path / "adapter", reduction=2))
    run, model = clip_run(named, str(digits), adapter=adapter)
    assert (run.config.merging.policy, run.config.merging.reduction) == ("dtem", 2)
    assert model.backbone.proportional_attention == attends
    assert all(torch.equal(model.backbone.state_dict()[key], value) for key, value in adapter.tensors.items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vision_cfg": {"timm_model_name": "vit_small"}}, "its image tower is timm's"),
        ({"multimodal_cfg": {}}, "it is a CoCa"),
        ({"vision_cfg": {"no_ln_pre": True}}, "its image tower has no_ln_pre"),
        ({"text_cfg": {"hf_model_name": "x"}}, "its text tower is one of transformers"),
        ({"init_logit_bias": -10}, "it has a bias of the logits"),
    ],
)
def test_what_would_be_scored_otherwise_is_refused(change, said):
    with pytest.raises(ConfigError, match=said):
        clip.image_tower("x", CONFIG | change)


def test_weights_of_another_model_are_refused():
    with pytest.raises(CheckpointError, match="not the weights of open_clip's ViT-B-32"):
        clip.Clip("ViT-B-32", parts.named_config("ViT-B-32"), {"visual.proj": torch.zeros(768, 512)})
