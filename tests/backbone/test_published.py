"""A published model is opened as who published it has it: whole, with its own head, size and pixels."""

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from launch.published.signal import signal_of
from pipeline import patch
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.backbone.published import open_published
from pipeline.backbone.weights.files import read_state_dict
from pipeline.backbone.weights.plain_models import fill_model
from pipeline.errors import CheckpointError, ConfigError

SIZE = 64
COMMON = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    image_size=32,
    patch_size=8,
)
TEXT = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=9)
OURS = dict(img_size=32, embed_dim=32, depth=2, num_heads=2, patch_size=8, mlp_ratio=2)


def drawn(name="test_vit", **options):
    torch.manual_seed(3)
    return timm.create_model(name, **dict(img_size=SIZE, num_classes=5) | options).eval()


def pictures(size=SIZE):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def theirs(kind, config, **options):
    """A model of transformers; image and text towers where it has both."""
    torch.manual_seed(3)
    return getattr(transformers, kind)(getattr(transformers, config)(**options)).eval()


@pytest.fixture
def file(tmp_path):
    """Path of a file with the tensors that are asked for."""

    def written(tensors):
        save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "x.safetensors")
        return str(tmp_path / "x.safetensors")

    return written


@torch.no_grad()
@pytest.mark.parametrize("around", ["module.", "backbone.", "_orig_mod.", ""])
def test_a_file_keeps_its_classifier_whatever_is_around_its_keys(around, file):
    wrote = drawn()
    weights = file({around + key: value for key, value in wrote.state_dict().items()})
    found = open_published("timm:test_vit", weights=weights, img_size=SIZE)
    assert found.classifies and torch.equal(found.model(pictures()), wrote(pictures()))


@torch.no_grad()
def test_a_classifier_of_transformers_fills_timms_model(tmp_path):
    wrote = theirs("ViTForImageClassification", "ViTConfig", **COMMON, num_labels=5, layer_norm_eps=1e-6)
    wrote.save_pretrained(tmp_path)
    model = timm.create_model("vit_tiny_patch16_224", **OURS).eval()
    fill_model(model, read_state_dict(tmp_path))
    torch.testing.assert_close(model(pictures(32)), wrote(pictures(32)).logits, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_pooling_by_attention_of_transformers_fills_timms_model(tmp_path):
    wrote = theirs("SiglipVisionModel", "SiglipVisionConfig", **COMMON)
    wrote.save_pretrained(tmp_path)
    model = timm.create_model("vit_base_patch16_siglip_224", act_layer="gelu_tanh", **OURS).eval()
    fill_model(model, read_state_dict(tmp_path))
    torch.testing.assert_close(model(pictures(32)), wrote(pictures(32)).pooler_output, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("lacking", ["norm.weight", "cls_token", "blocks.1.norm1.bias", "head.bias"])
def test_weights_that_lack_a_part_are_refused(lacking, file):
    own = dict(drawn().state_dict())
    del own[lacking]
    with pytest.raises(CheckpointError, match=lacking):
        open_published("timm:test_vit", weights=file(own), img_size=SIZE)


@pytest.mark.parametrize(("tag", "mean"), [("", (0.5, 0.5, 0.5)), (".dino", (0.485, 0.456, 0.406))])
def test_a_file_wants_the_pixels_of_the_name_with_its_tag(tag, mean, file):
    weights = file(drawn("vit_small_patch16_224", img_size=224, num_classes=0).state_dict())
    assert open_published(f"timm:vit_small_patch16_224{tag}", weights=weights).pixels.mean == mean


@torch.no_grad()
def test_an_export_that_merges_is_opened_as_its_base(tmp_path):
    merging = patch(drawn(), "tome", 3)
    save_for_hf(merging, tmp_path, safe_serialization=True)
    found = open_published(str(tmp_path))
    assert not isinstance(found.model, MergingModel) and found.base_model is None
    assert torch.equal(found.model(pictures()), drawn()(pictures()))
    merging.reduction = 0
    assert torch.equal(found.model(pictures()), merging(pictures()))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:test_vit_dtem", "merges already; give timm:test_vit"),
        ("user/model", "give hf:user/model or hf-hub:user/model"),
        ("{file}", "is a file of weights; give timm:NAME of its model, and --weights"),
        ("test_vitt", "did you mean 'test_vit'"),
    ],
)
def test_a_name_that_is_none_has_a_way_out(name, said, file):
    with pytest.raises(ConfigError, match=said) as told:
        open_published(name.format(file=file({"x": torch.zeros(1)})))
    assert "_dtem" not in str(told.value).replace("test_vit_dtem", "")


@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_projection_is_no_classifier_wherever_it_comes_from(place, file, tmp_path):
    """As wide as timm's own heads of this architecture, and nobody names its classes."""
    name = "vit_xsmall_patch16_clip_224"
    model = drawn(name, img_size=224, num_classes=512)
    if place == "file":
        found = open_published(f"timm:{name}", weights=file(model.state_dict()))
    else:
        save_for_hf(model, tmp_path / "folder", safe_serialization=True)
        found = open_published(str(tmp_path / "folder"))
    assert not found.classifies and signal_of(found).kind == "pooled"


AROUND = {
    "siglip": ("SiglipForImageClassification", "SiglipConfig"),
    "clip": ("CLIPForImageClassification", "CLIPConfig"),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", AROUND)
def test_a_classifier_behind_an_image_tower_stays(kind, tmp_path, caplog):
    """With the size that stands in the tower's config. Pixels that nobody states are told."""
    wrote = theirs(*AROUND[kind], text_config=TEXT, vision_config=COMMON, num_labels=5)
    wrote.save_pretrained(tmp_path)
    found = open_published(str(tmp_path))
    own, logits = signal_of(found), wrote(pictures(32)).logits
    assert found.classifies and found.size == (32, 32) and len(found.classes) == 5 and own.kind == "logits"
    torch.testing.assert_close(found.model(pictures(32)).logits, logits)
    model = patch(found.model, "tome", reduction=0)
    torch.testing.assert_close(own.read(model, own.encode(model, pictures(32))), logits)
    assert "does not say how it wants its pixels" in caplog.text


@pytest.mark.parametrize(
    ("lacking", "said"), [("layers.1.mlp.fc1.weight", "lack layers.1.mlp.fc1.weight"), ("pooler.", None)]
)
def test_what_transformers_would_draw_anew_is_not_taken_for_weights(lacking, said, tmp_path):
    """A pooler that the weights lack is none; any other part is needed."""
    theirs("ViTModel", "ViTConfig", **COMMON).save_pretrained(tmp_path)
    place = tmp_path / "model.safetensors"
    saved = {"layers.": "encoder.layer.", "mlp.fc1.": "intermediate.dense."}
    own = load_file(place)
    gone = lacking if any(key.startswith(lacking) for key in own) else _as_saved(lacking, saved)
    kept = {key: value for key, value in own.items() if not key.startswith(gone)}
    assert len(kept) < len(own)
    save_file(kept, place, metadata={"format": "pt"})
    if said is None:
        assert signal_of(open_published(str(tmp_path))).kind == "patches"
    else:
        with pytest.raises(ConfigError, match=said):
            open_published(str(tmp_path))


def _as_saved(key, names):
    for own, theirs_ in names.items():
        key = key.replace(own, theirs_)
    return key


def test_a_model_of_one_size_takes_no_other(tmp_path):
    theirs("CLIPVisionModel", "CLIPVisionConfig", **COMMON).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="reads images of 32x32 pixels alone; leave --img-size out"):
        open_published(str(tmp_path), img_size=64)


def test_another_size_is_warned_of(tmp_path, caplog):
    theirs("Dinov2Model", "Dinov2Config", **COMMON).save_pretrained(tmp_path)
    assert open_published(str(tmp_path), img_size=64).size == (64, 64)
    assert "images are of 64x64 pixels" in caplog.text


def test_a_model_of_patches_is_refused(tmp_path):
    sizes = {key: value for key, value in COMMON.items() if key != "image_size"}
    theirs("Siglip2VisionModel", "Siglip2VisionConfig", **sizes, num_patches=16).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="reads patches, not images: give a SigLIP 2 of one size"):
        open_published(str(tmp_path))
