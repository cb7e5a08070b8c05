"""open_clip's models beside ours on the same weights; what is refused; the parts that captioning is built
from."""

import copy

import open_clip
import pytest
import torch
from open_clip.coca_model import CoCa
from open_clip.loss import CoCaLoss
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file
from tiny import SEED, generator
from torch import nn

import tasks  # noqa: F401  (registration)
from pipeline import build_backbone
from pipeline.backbone.weights.files import read_state_dict
from pipeline.backbone.weights.load import load_weights
from pipeline.config.load import from_plain
from pipeline.errors import CheckpointError, ConfigError
from pipeline.model import TASKS, MultiTaskModel, build_model
from pipeline.objectives import OBJECTIVES
from tasks.classification import ClassificationTask
from tasks.open_clip_bridge import pretrained
from tasks.open_clip_bridge.parts import build_parts
from tasks.open_clip_bridge.weights import (
    OpenClipWeights,
    caption_weights,
    image_tower_weights,
    open_clip_weights,
)

VOCABULARY, LENGTH, WIDTH = 40, 12, 64
TEXT = {"width": WIDTH, "heads": 4, "layers": 2}
VISION = {"width": WIDTH, "layers": 2, "head_width": 16, "patch_size": 8, "image_size": 32}
POOLER = {"attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 4, "output_tokens": True}
READ = {"vocab_size": VOCABULARY, "context_length": LENGTH}
SPEC = {"embed_dim": WIDTH, "text_cfg": TEXT, "multimodal_cfg": TEXT, "vision_cfg": VISION | POOLER}
OF_TEXT = {"embed_cls": True, "output_tokens": True}
SIZES = {"embed_dim": WIDTH, "depth": 2, "num_heads": 4, "patch_size": 8}


def clip(quick_gelu=False, **vision):
    torch.manual_seed(SEED + 0)
    return CLIP(WIDTH, copy.deepcopy(VISION) | vision, TEXT | READ, quick_gelu=quick_gelu).eval()


def coca(vision=None, quick_gelu=False):
    torch.manual_seed(SEED + 0)
    vision = VISION | POOLER | (vision or {})
    model = CoCa(
        WIDTH,
        multimodal_cfg=TEXT | READ,
        text_cfg=TEXT | READ | OF_TEXT,
        vision_cfg=vision,
        quick_gelu=quick_gelu,
    )
    nn.init.normal_(model.text_decoder.text_projection, std=0.1)
    return model.eval()


def tower(name="vit_base_patch32_clip_224", policy="none", img_size=32, **options):
    torch.manual_seed(SEED + 1)
    return build_backbone(name, policy=policy, img_size=img_size, timm_options=SIZES | options).eval()


def images(batch=2, size=32):
    return torch.randn(batch, 3, size, size, generator=generator(2))


@torch.no_grad()
def tokens_of(visual, x):
    """What open_clip's native tower has before it pools."""
    return visual.transformer(visual._embeds(x))


@torch.no_grad()
def agree(backbone, wanted, x):
    torch.testing.assert_close(backbone(x, reduction=0).final.tokens, wanted, atol=2e-5, rtol=1e-4)


PLAIN = ("vit_base_patch32_clip_224", {}, {})
NATIVE = {
    "gelu": PLAIN,
    "quick_gelu": ("vit_base_patch32_clip_quickgelu_224", {"quick_gelu": True}, {}),
    "quick_gelu by option": ("vit_base_patch32_clip_224", {"quick_gelu": True}, {"act_layer": "quick_gelu"}),
    "layer scale": ("vit_base_patch32_clip_224", {"ls_init_value": 0.3}, {"init_values": 1e-5}),
    "no norm before the blocks": (
        "vit_base_patch32_224",
        {"no_ln_pre": True, "norm_kwargs": {"eps": 1e-6}},
        {},
    ),
    "gelu_tanh": (
        "vit_base_patch32_clip_224",
        {"act_kwargs": {"approximate": "tanh"}},
        {"act_layer": "gelu_tanh"},
    ),
}


@pytest.mark.parametrize("case", NATIVE)
def test_a_native_clip_tower_computes_the_same(case):
    name, theirs, options = NATIVE[case]
    model, backbone = clip(**theirs), tower(name, **options)
    report = load_weights(backbone, model.state_dict())
    assert not report.missing and len(report.taken) == len(backbone.state_dict())
    assert all(key.startswith("open_clip:") for key in report.left) and "open_clip:visual.proj" in report.left
    agree(backbone, model.visual.ln_post(tokens_of(model.visual, images())), images())


@pytest.mark.parametrize("policy", ["tome", "dtem"])
def test_metric_embeddings_keep_their_own_values(policy):
    model, backbone = clip(), tower(policy=policy)
    before = {key: value.clone() for key, value in backbone.state_dict().items() if ".metric." in key}
    report = load_weights(backbone, {f"module.{key}": value for key, value in model.state_dict().items()})
    assert set(report.missing) == set(before)
    assert all(torch.equal(backbone.state_dict()[key], value) for key, value in before.items())
    agree(backbone, model.visual.ln_post(tokens_of(model.visual, images())), images())


def test_a_coca_tower_gives_what_its_pooler_reads():
    model, backbone = coca(), tower()
    assert not load_weights(backbone, model.state_dict()).missing
    wanted = model.visual.attn_pool.ln_k(tokens_of(model.visual, images()))
    agree(backbone, wanted, images())


def test_gradients_of_the_tower_are_open_clips():
    model, backbone = clip(quick_gelu=True), tower(act_layer="quick_gelu")
    load_weights(backbone, model.state_dict())
    model.visual.ln_post(model.visual.transformer(model.visual._embeds(images()))).square().mean().backward()
    backbone(images(), reduction=0).final.tokens.square().mean().backward()
    wanted = image_tower_weights(
        {f"visual.{key}": p.grad for key, p in model.visual.named_parameters() if p.grad is not None}
    )
    for key, parameter in backbone.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[key], atol=1e-5, rtol=1e-3)


def test_a_tower_of_another_grid_has_its_positions_resampled():
    model, backbone = clip(), tower(img_size=64)
    assert not load_weights(backbone, model.state_dict()).missing
    state = model.state_dict()
    larger = clip(image_size=64)
    open_clip.factory.resize_pos_embed(state, larger)
    larger.load_state_dict(state)
    agree(backbone, larger.visual.ln_post(tokens_of(larger.visual, images(size=64))), images(size=64))


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_base_patch16_gap_224", "deit_tiny_distilled_patch16_224"]
)
def test_a_timm_tower_computes_the_same(name, monkeypatch):
    build = open_clip.timm_model.timm.create_model
    monkeypatch.setattr(
        open_clip.timm_model.timm, "create_model", lambda name, **o: build(name, img_size=32, **(SIZES | o))
    )
    torch.manual_seed(SEED + 0)
    model = CustomTextCLIP(
        WIDTH, {"timm_model_name": name, "timm_pool": "", "image_size": 32}, TEXT | READ
    ).eval()
    monkeypatch.undo()
    backbone = tower(name)
    report = load_weights(backbone, model.state_dict())
    assert not report.missing
    with torch.no_grad():
        agree(backbone, model.visual.trunk.forward_features(images()), images())


PUBLISHED = {
    "ViT-B-32-quickgelu": "vit_base_patch32_clip_quickgelu_224",
    "coca_ViT-B-32": "vit_base_patch32_clip_224",
    "coca_ViT-L-14": "vit_large_patch14_clip_224",
    "ViT-H-14": "vit_huge_patch14_clip_224",
    "ViT-B-16-SigLIP": "vit_base_patch16_siglip_224",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_towers_have_a_name_in_timm(name):
    """Heads and activation too; on the meta device, as some are large."""
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        visual = open_clip.model._build_vision_tower(
            config["embed_dim"], config["vision_cfg"], config.get("quick_gelu", False)
        )
        backbone = build_backbone(PUBLISHED[name])
    given = OpenClipWeights({f"visual.{key}": value for key, value in visual.state_dict().items()}, config)
    assert set(backbone.state_dict()) <= set(open_clip_weights(given, backbone))


def test_a_file_is_enough(tmp_path):
    model, backbone = coca(), tower()
    save_file(
        {key: value.clone() for key, value in model.state_dict().items()}, tmp_path / "coca.safetensors"
    )
    torch.save({"epoch": 3, "name": "coca", "state_dict": model.state_dict()}, tmp_path / "coca.pt")
    for file in ("coca.safetensors", "coca.pt"):
        report = load_weights(backbone, read_state_dict(tmp_path / file))
        assert f"took {len(backbone.state_dict())} tensors" in str(report)


def test_a_clip_tower_goes_to_a_classifier_and_its_last_norm_behind_the_pooling():
    backbone = tower(global_pool="avg", fc_norm=True)
    model = MultiTaskModel(
        backbone, {"animals": ClassificationTask(backbone, num_classes=3)}, OBJECTIVES.build("supervised")
    )
    report = load_weights(model, clip().state_dict())
    assert set(report.missing) == {"tasks.animals.head.weight", "tasks.animals.head.bias"}
    assert {"tasks.animals.fc_norm.weight", "tasks.animals.fc_norm.bias"} <= set(report.taken)


ANOTHER = {
    "width": (
        {"width": 32},
        {},
        r"'visual.class_embedding' is \(1, 1, 32\) in the checkpoint, and 'cls_token' \(1, 1, 64\)",
    ),
    "patch": (
        {"patch_size": 16},
        {},
        r"'visual.conv1.weight' is \(64, 3, 16, 16\) in the checkpoint, and 'patch_embed.proj.weight'",
    ),
    "deeper": (
        {"layers": 3},
        {},
        r"'visual.transformer.resblocks.2.ln_1.weight' of the checkpoint has no place",
    ),
    "shallower": ({"layers": 1}, {}, r"'blocks.1.norm1.weight' of the backbone is not in the checkpoint"),
    "mlp": ({"mlp_ratio": 2.0}, {}, r"'visual.transformer.resblocks.0.mlp.c_fc.weight' is \(128, 64\)"),
    "norm before the blocks": (
        {"no_ln_pre": True},
        {},
        r"'norm_pre.weight' of the backbone is not in the checkpoint",
    ),
    "no norm before the blocks": (
        {},
        {"pre_norm": False},
        r"'visual.ln_pre.weight' of the checkpoint has no place",
    ),
    "layer scale": (
        {"ls_init_value": 0.1},
        {},
        r"'visual.transformer.resblocks.0.ls_1.gamma' of the checkpoint has no place",
    ),
    "no layer scale": (
        {},
        {"init_values": 0.1},
        r"'blocks.0.ls1.gamma' of the backbone is not in the checkpoint",
    ),
    "custom blocks": (
        {"scale_fc": True},
        {},
        r"'visual.transformer.resblocks.0.mlp.ln.weight' of the checkpoint has no place",
    ),
    "resnet": ({"layers": [1, 1, 1, 1], "head_width": 64}, {}, r"'visual.conv1.weight' is \(32, 3, 3, 3\)"),
    "class token": (
        {},
        {"class_token": False, "global_pool": "avg"},
        "'visual.class_embedding' of the checkpoint has no place",
    ),
}


@pytest.mark.parametrize("case", ANOTHER)
def test_another_tower_is_refused_by_its_first_tensor(case):
    theirs, options, message = ANOTHER[case]
    backbone = tower(**options)
    before = copy.deepcopy(backbone.state_dict())
    with pytest.raises(CheckpointError, match=f"{message}.*give backbone.name"):
        load_weights(backbone, clip(**theirs).state_dict())
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


def test_poolers_that_open_clip_has_not_finished_are_refused():
    model = coca({"attentional_pool": "parallel"})
    with pytest.raises(
        CheckpointError, match="visual.attn_pool_contrastive.query' of the checkpoint has no place"
    ):
        load_weights(tower(), model.state_dict())


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (
            {"quick_gelu": True},
            {},
            "activation quick_gelu, the backbone another; give backbone.options act_layer='quick_gelu'",
        ),
        ({}, {"act_layer": "quick_gelu"}, "activation gelu, the backbone another.*without 'quickgelu'"),
        ({"vision_cfg": VISION | {"act_kwargs": {"approximate": "tanh"}}}, {}, "act_layer='gelu_tanh'"),
        (
            {"vision_cfg": VISION | {"head_width": 32}},
            {},
            "has 2 heads, the backbone 4; give backbone.options num_heads=2",
        ),
    ],
)
def test_what_shapes_do_not_show_is_refused_where_the_config_is_known(config, options, message):
    given = OpenClipWeights(clip().state_dict(), {"vision_cfg": VISION} | config)
    with pytest.raises(CheckpointError, match=message):
        load_weights(tower(**options), given)
    load_weights(tower(), OpenClipWeights(clip().state_dict(), {"vision_cfg": VISION}))


def test_a_published_name_brings_its_config(tmp_path, monkeypatch):
    save_file(
        {key: value.clone() for key, value in clip().state_dict().items()}, tmp_path / "clip.safetensors"
    )
    file = tmp_path / "clip.safetensors"
    found = read_state_dict(f"open_clip:ViT-B-32-quickgelu@{file}")
    assert isinstance(found, OpenClipWeights) and found.config["quick_gelu"] and "visual.proj" in found
    monkeypatch.setattr(pretrained, "download_pretrained", lambda cfg: str(file))
    assert read_state_dict("open_clip:ViT-B-32@openai").config["quick_gelu"]
    assert not read_state_dict("open_clip:ViT-B-32@laion2b_s34b_b79k").config["quick_gelu"]


def test_names_that_nothing_is_published_under(monkeypatch):
    with pytest.raises(ConfigError, match="unknown open_clip model 'ViT-B-33'; did you mean 'ViT-B-32'"):
        read_state_dict("open_clip:ViT-B-33@openai")
    with pytest.raises(CheckpointError, match="no such file, and unknown tag 'opnai'; did you mean 'openai'"):
        read_state_dict("open_clip:ViT-B-32@opnai")

    def offline(cfg):
        raise FileNotFoundError("no network")

    monkeypatch.setattr(pretrained, "download_pretrained", offline)
    with pytest.raises(
        CheckpointError,
        match=r"open_clip:ViT-B-32@openai cannot be downloaded \(no network\); give open_clip:MODEL@FILE",
    ):
        read_state_dict("open_clip:ViT-B-32@openai")


def filled(parts):
    """Text tower, decoder, and a pooler with the tensors that open_clip keeps on its image tower, all with a
    CoCa's weights."""
    modules = nn.ModuleDict({"text": parts.text, "decoder": parts.decoder, "pooler": parts.pooler(WIDTH)})
    modules["pooler"].ln_post = nn.LayerNorm(WIDTH)
    modules["pooler"].proj = nn.Parameter(torch.empty(WIDTH, WIDTH))
    return modules


def test_the_parts_on_our_tower_are_open_clips_coca():
    model, parts, backbone = coca(), build_parts(SPEC, **READ), tower()
    load_weights(backbone, model.state_dict())
    modules = filled(parts)
    given = caption_weights(model.state_dict())
    assert torch.equal(given.pop("logit_scale"), model.logit_scale[None])
    modules.load_state_dict(given)
    words = torch.randint(1, VOCABULARY, (2, 9))
    with torch.no_grad():
        wanted = model(images(), words)
        tokens = modules["pooler"].ln_post(modules["pooler"](backbone(images(), reduction=0).final.tokens))
        feature, read = parts.text(words)
        logits = parts.decoder(tokens[:, 1:], read[:, :-1])
    torch.testing.assert_close(logits, wanted["logits"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        nn.functional.normalize(tokens[:, 0] @ modules["pooler"].proj),
        wanted["image_features"],
        atol=1e-5,
        rtol=1e-4,
    )
    torch.testing.assert_close(nn.functional.normalize(feature), wanted["text_features"])


def captioning_model(num_words=VOCABULARY - 4, context_length=LENGTH, route="pooler", **options):
    backbone = tower(**options)
    tokenizer = {
        "type": "words",
        "words": [f"w{i}" for i in range(num_words)],
        "context_length": context_length,
    }
    task = TASKS.build("captioning", backbone, model=SPEC, tokenizer=tokenizer, route=route)
    return MultiTaskModel(backbone, {"captions": task}, OBJECTIVES.build("supervised"))


def test_a_coca_checkpoint_fills_the_whole_captioning_model():
    model = captioning_model()
    report = load_weights(model, coca().state_dict())
    assert not report.missing and not report.left
    assert torch.equal(model.tasks["captions"].decoder.text_projection, coca().text_decoder.text_projection)


def test_a_modular_run_starts_from_the_file_of_a_coca(tmp_path, caplog):
    """Modular training refuses weights that leave anything random that it would freeze."""
    torch.save({"epoch": 1, "state_dict": coca().state_dict()}, tmp_path / "coca.pt")
    tokenizer = {"type": "words", "words": [f"w{i}" for i in range(VOCABULARY - 4)], "context_length": LENGTH}
    head = {"model": SPEC, "tokenizer": tokenizer}
    data = {"train": "unread", "schema": "captioning", "tokenizer": tokenizer}
    backbone = {
        "name": "vit_base_patch32_clip_224",
        "img_size": 32,
        "weights": str(tmp_path / "coca.pt"),
        "options": SIZES,
    }
    plain = {
        "output": str(tmp_path),
        "backbone": backbone,
        "merging": {"policy": "dtem", "reduction": 2},
        "tasks": {"captions": {"type": "captioning", "head": head, "data": data}},
        "train": {"mode": "modular", "steps": 1},
    }
    with caplog.at_level("INFO"):
        model = build_model(from_plain(plain))
    assert "coca.pt: took" in caplog.text and "left unused: none" in caplog.text
    agree(model.eval().backbone, coca().visual.attn_pool.ln_k(tokens_of(coca().visual, images())), images())


def test_without_a_last_norm_in_the_backbone_the_pooler_has_its_own():
    report = load_weights(captioning_model(global_pool="avg", fc_norm=True), coca().state_dict())
    assert not report.missing and not report.left and "tasks.captions.pooler.ln_k.weight" in report.taken


def test_another_vocabulary_takes_the_tower_only_and_says_so(caplog):
    report = load_weights(captioning_model(num_words=3), coca().state_dict())
    assert {key.split(".")[0] for key in report.taken} == {
        "backbone"
    } and "open_clip:text.token_embedding.weight" in report.left
    assert "reads 40 different tokens and the task 7: only its image tower is taken" in caplog.text


def test_a_clip_gives_a_captioner_its_tower_only():
    report = load_weights(captioning_model(), clip().state_dict())
    assert {key.split(".")[0] for key in report.taken} == {"backbone"}


def test_the_direct_route_leaves_the_pooler():
    report = load_weights(captioning_model(route="direct"), coca().state_dict())
    assert all(key.startswith("tasks.captions.direct.") for key in report.missing)
    assert report.left and all(key.startswith("pooler.") for key in report.left)


def test_another_context_is_refused_by_name():
    with pytest.raises(
        CheckpointError,
        match=r"text.positional_embedding' is \(13, 64\) in the checkpoint and \(17, 64\) in the model",
    ):
        load_weights(captioning_model(context_length=16), coca().state_dict())


def test_a_new_decoder_learns_below_its_last_matrix_from_the_first_step():
    """open_clip leaves that matrix as the memory was, mostly zeros: every word is then as likely, and nothing
    below gets a gradient."""
    torch.manual_seed(SEED + 0)
    parts = build_parts(SPEC, **READ)
    assert 0.8 < parts.decoder.text_projection.std() * WIDTH**0.5 < 1.2
    pooler, words = parts.pooler(WIDTH), torch.randint(1, VOCABULARY, (2, 9))
    image = pooler(torch.randn(2, 17, WIDTH))
    feature, read = parts.text(words)
    logits = parts.decoder(image[:, 1:], read[:, :-1])
    features = (nn.functional.normalize(x) for x in (image[:, 0], feature))
    losses = CoCaLoss(2.0, 1.0)(*features, logits, words[:, 1:], torch.tensor(10.0))
    assert all(torch.isfinite(loss) for loss in losses)
    sum(losses).backward()
    for module in (parts.decoder, parts.text, pooler):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_the_published_coca_is_built_by_its_name(monkeypatch):
    config = open_clip.get_model_config("coca_ViT-B-32")
    for section in ("text_cfg", "multimodal_cfg"):
        config[section] |= {"layers": 1}
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: config)
    parts = build_parts("coca_ViT-B-32", vocab_size=49408, context_length=76)
    assert (parts.embed_dim, parts.width, parts.n_queries, parts.heads) == (512, 512, 256, 8)
    assert parts.text.output_tokens and parts.text.cls_emb is not None
    assert parts.decoder.text_projection.shape == (512, 49408)
    with pytest.raises(
        ConfigError, match="text_cfg.context_length is 76, but the tokenizer's is 32; make them agree"
    ):
        build_parts("coca_ViT-B-32", vocab_size=49408, context_length=32)


def test_the_users_dict_stays_as_it_is():
    before = copy.deepcopy(SPEC)
    build_parts(SPEC, **READ)
    assert before == SPEC


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("coca_ViT-B-33", "unknown open_clip model 'coca_ViT-B-33'; did you mean 'coca_ViT-B-32'"),
        ("ViT-B-32", "has no multimodal_cfg, so it is no CoCa; give one of .*coca_ViT-B-32"),
        ("hf-hub:someone/something", "unknown open_clip model"),
        ("local-dir:/tmp", "unknown open_clip model"),
        ("coca_roberta-ViT-B-32", "by transformers, which this project does not use"),
        (SPEC | {"pretrained": "x"}, "unknown option 'pretrained'"),
        (
            SPEC | {"text_cfg": TEXT | {"widht": 3}},
            "model.text_cfg: unknown option 'widht'; did you mean 'width'",
        ),
        (
            SPEC | {"text_cfg": TEXT | {"vocab_size": 3}},
            "model.text_cfg.vocab_size is 3, but the tokenizer's is 40",
        ),
        (SPEC | {"text_cfg": TEXT | {"width": 32}}, "model.text_cfg.width is 32, but the decoder, .* has 64"),
        (
            SPEC | {"text_cfg": TEXT | {"embed_cls": False}},
            "model.text_cfg.embed_cls is False, but captioning needs True",
        ),
        (SPEC | {"text_cfg": TEXT | {"pad_id": 1}}, "model.text_cfg.pad_id is 1, but captioning needs 0"),
        (SPEC | {"text_cfg": TEXT | {"heads": 5}}, "open_clip cannot build"),
        (SPEC | {"vision_cfg": {"attn_pooler_heads": 5}}, "the pooler's 5 heads do not divide its width 64"),
    ],
)
def test_what_open_clip_cannot_build_is_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        build_parts(spec, **READ)
