"""Weights of VideoMAE in a backbone of clips: at r = 0 the tokens are theirs; and weights of images in it."""

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from tiny import SEED, generator
from torch import nn

import dtem
from pipeline import build_backbone, load_weights
from pipeline.backbone.adapters.digest import base_digest
from pipeline.backbone.build import create_vit
from pipeline.backbone.weights.huggingface_config import stated_by
from pipeline.backbone.weights.stated import check_stated
from pipeline.errors import CheckpointError, ConfigError
from pipeline.model import MultiTaskModel
from pipeline.objectives import OBJECTIVES
from tasks.classification import ClassificationTask

NAME, FRAMES, IMG = "vit_tiny_patch16_224", 8, 32
THEIRS = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    image_size=IMG,
    patch_size=8,
    num_frames=FRAMES,
)
OURS = dict(embed_dim=32, depth=2, num_heads=2, patch_size=8, mlp_ratio=2)


def drawn(model: nn.Module) -> nn.Module:
    """The model with every weight drawn anew, also norms and biases that start at 0 or 1."""
    torch.manual_seed(SEED)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def backbone(frames=FRAMES, policy="none", **options):
    torch.manual_seed(SEED + 1)
    timm_options = OURS | options
    return build_backbone(NAME, frames=frames, policy=policy, img_size=IMG, timm_options=timm_options).eval()


def classifier(ours):
    task = ClassificationTask(ours, num_classes=5)
    return MultiTaskModel(ours, {"clips": task}, OBJECTIVES.build("supervised")).eval()


def clips():
    return torch.randn(2, FRAMES, 3, IMG, IMG, generator=generator(2))


def state_of(model, style, folder):
    if style == "in memory":
        return model.state_dict()
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@torch.no_grad()
@pytest.mark.parametrize("style", ["in memory", "saved"])
@pytest.mark.parametrize("biases", [True, False])
def test_tokens_are_those_of_transformers_after_every_block(style, biases, tmp_path):
    """Before pooling it has a norm of its own, as VideoMAE has before fine-tuning."""
    model = drawn(hf.VideoMAEModel(hf.VideoMAEConfig(**THEIRS, use_mean_pooling=False, qv_bias=biases)))
    ours = backbone(fc_norm=False, qkv_bias=biases)
    report = load_weights(ours, state_of(model, style, tmp_path))
    assert not report.missing and not report.left, report
    wanted = model(clips(), output_hidden_states=True)
    found = ours(clips(), reduction=0, taps=(0, 1))
    torch.testing.assert_close(found.final.tokens, wanted.last_hidden_state, atol=2e-5, rtol=1e-4)
    for tap, state in zip(found.taps, wanted.hidden_states[1:], strict=True):
        torch.testing.assert_close(tap.tokens, state, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("style", ["in memory", "saved"])
def test_logits_are_those_of_transformers_classifier(style, tmp_path):
    model = drawn(hf.VideoMAEForVideoClassification(hf.VideoMAEConfig(**THEIRS, num_labels=5)))
    model.fc_norm.eps = 1e-6  # as in the authors' code; transformers has torch's default there
    ours = classifier(backbone())
    report = load_weights(ours, state_of(model, style, tmp_path))
    assert not report.missing and not report.left, report
    logits = ours.tasks["clips"].logits(ours.encode("clips", clips(), reduction=0))
    torch.testing.assert_close(logits, model(clips()).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_authors_keys_are_read_before_and_after_fine_tuning():
    """Before it the encoder is beside a decoder, which is left."""
    given, ours = drawn(classifier(backbone())), classifier(backbone())
    plain = {key.removeprefix("backbone."): value for key, value in given.state_dict().items()}
    tuned = {key.replace("tasks.clips.", ""): value for key, value in plain.items()}
    assert {"blocks.1.attn.q_bias", "blocks.1.attn.v_bias", "fc_norm.weight", "head.bias"} <= tuned.keys()
    assert not load_weights(ours, tuned).missing
    predicted = given.encode("clips", clips()).final.tokens
    assert torch.equal(ours.encode("clips", clips()).final.tokens, predicted)
    before = {f"encoder.{key}": value for key, value in plain.items() if not key.startswith("tasks.")}
    rest = {
        "encoder.norm.weight": torch.ones(32),
        "decoder.blocks.0.attn.qkv.weight": torch.ones(3, 3),
        "encoder_to_decoder.weight": torch.ones(3, 32),
        "mask_token": torch.ones(1, 1, 3),
    }
    other = backbone()
    report = load_weights(other, before | rest)
    assert not report.missing and set(report.left) == rest.keys() - {"encoder.norm.weight"} | {"norm.weight"}
    assert torch.equal(other(clips()).final.tokens, predicted)


@torch.no_grad()
def test_a_state_of_ours_is_read_again():
    given, ours = drawn(classifier(backbone())), classifier(backbone())
    assert not load_weights(ours, given.state_dict()).missing
    assert all(map(torch.equal, ours.state_dict().values(), given.state_dict().values()))


@torch.no_grad()
@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_weights_of_images_embed_a_still_clip_as_its_image(library):
    """Blocks have theirs; what only images have is left."""
    vit = drawn(create_vit(NAME, img_size=IMG, timm_options=OURS))
    given = vit.state_dict()
    if library == "transformers":
        config = {key: value for key, value in THEIRS.items() if key != "num_frames"}
        model = drawn(hf.ViTModel(hf.ViTConfig(**config)))
        given = model.state_dict()
        read = build_backbone(NAME, img_size=IMG, timm_options=OURS)
        load_weights(read, given)
        vit.load_state_dict(read.state_dict(), strict=False)
    ours = backbone()
    report = load_weights(ours, given)
    assert not report.missing
    assert {"cls_token", "pos_embed", "norm.weight", "norm.bias"} <= set(report.left)
    image = clips()[:, 0]
    still = ours.patch_embed(image[:, None].expand(-1, FRAMES, -1, -1, -1)) - ours.patch_embed.positions
    for tubelets in still.unflatten(1, (FRAMES // 2, -1)).unbind(1):
        torch.testing.assert_close(tubelets, vit.patch_embed(image), atol=1e-5, rtol=1e-4)
    x = torch.randn(2, 9, 32, generator=generator(3))
    for block, plain in zip(ours.blocks, vit.blocks, strict=True):
        # a bias of keys adds the same to all logits of a query
        torch.testing.assert_close(block.attn(x), plain.attn(x), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(block.mlp(x), plain.mlp(x), atol=1e-5, rtol=1e-4)


def test_weights_that_do_not_fit_are_refused_by_name():
    clips_in_twos = backbone().state_dict()
    with pytest.raises(CheckpointError, match="reads clips, in tubelets of 2 .*; give backbone.frames"):
        load_weights(backbone(frames=1), clips_in_twos)
    ones = build_backbone(NAME, frames=FRAMES, tubelet=1, img_size=IMG, timm_options=OURS)
    with pytest.raises(CheckpointError, match=r"\(32, 3, 2, 8, 8\) in the checkpoint and \(32, 3, 1, 8, 8\)"):
        load_weights(ones, clips_in_twos)
    strange = clips_in_twos | {"blocks.0.attn.qkv.bias": torch.ones(7)}
    with pytest.raises(CheckpointError, match="has no place in the backbone"):
        load_weights(backbone(), strange)
    stated = stated_by(hf.VideoMAEConfig(**THEIRS | {"num_attention_heads": 4}).to_dict())
    with pytest.raises(CheckpointError, match="has 4 heads, the backbone 2"):
        check_stated(stated, backbone())


@torch.no_grad()
@pytest.mark.parametrize("policy", ["tome", "vid_tldr", "rlt"])
def test_a_model_of_transformers_merges_as_the_backbone_of_its_weights(policy):
    """Patched, in float64, as merges are a chain of choices; an adapter of one fits the other."""
    config = hf.VideoMAEConfig(**THEIRS, use_mean_pooling=False, layer_norm_eps=1e-6)
    theirs, ours = drawn(hf.VideoMAEModel(config)), backbone(fc_norm=False, policy=policy)
    load_weights(ours, theirs.state_dict())
    patched = dtem.patch(theirs.double(), policy, reduction=[20, 10])
    found = ours.double()(clips().double(), reduction=[20, 10]).final
    wanted = patched.encode(clips().double()).final
    assert found.grid == wanted.grid == (4, 4, 4) and found.tokens.shape[1] == 34
    torch.testing.assert_close(found.tokens, wanted.tokens, atol=1e-8, rtol=0)
    torch.testing.assert_close(found.size, wanted.size)
    assert base_digest(ours.blocks) == base_digest(patched.merging_blocks)
    with pytest.raises(ConfigError, match="leave bool_masked_pos out"):
        patched(clips().double(), bool_masked_pos=torch.ones(2, 64, dtype=torch.bool))
