"""Models of transformers are opened by one door: a folder gives the model that wrote it, and nothing else is
run or read."""

import json

import pytest
import torch
import transformers

from pipeline.backbone.hugging_face import open_model
from pipeline.backbone.published import open_published
from pipeline.errors import ConfigError

SIZES = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    image_size=32,
    patch_size=8,
)


def vit_folder(folder):
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, num_labels=5))
    model.save_pretrained(folder)
    return model.eval()


@torch.no_grad()
def test_a_folder_gives_the_model_that_wrote_it(tmp_path):
    wrote, found = vit_folder(tmp_path), open_model(str(tmp_path))
    images = torch.randn(2, 3, 32, 32)
    assert type(found) is type(wrote) and not found.training
    assert found.config._attn_implementation == "sdpa"
    torch.testing.assert_close(found(images).logits, wrote(images).logits)


@torch.no_grad()
def test_of_a_model_of_images_and_texts_the_image_tower_is_taken(tmp_path):
    text = dict(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=9
    )
    config = transformers.SiglipConfig(text_config=text, vision_config=SIZES)
    wrote = transformers.SiglipModel(config).eval()
    wrote.save_pretrained(tmp_path)
    found, images = open_model(str(tmp_path)), torch.randn(2, 3, 32, 32)
    wanted = wrote.vision_model(images).last_hidden_state
    torch.testing.assert_close(found(images).last_hidden_state, wanted)


def test_code_of_a_repository_does_not_run(tmp_path):
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w')\n")
    names = {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": names}))
    with pytest.raises(ConfigError, match="transformers cannot open"):
        open_model(str(tmp_path))
    assert not (tmp_path / "it ran").exists()


def test_pickled_weights_are_not_read(tmp_path):
    model = vit_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="give a folder that save_pretrained wrote"):
        open_model(str(tmp_path))


@pytest.mark.parametrize("where", ["no/such/folder", "nobody/nothing", "empty"])
def test_what_cannot_be_opened_has_a_way_out(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=f"cannot open '{where}': .*; give a folder"):
        open_model(where)


def test_a_model_of_clips_is_refused_where_images_are_given(tmp_path):
    """By the commands that read pictures."""
    config = transformers.VideoMAEConfig(**SIZES, num_frames=4)
    transformers.VideoMAEModel(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="VideoMAEModel reads clips, not images: patch it by dtem.patch"):
        open_published(str(tmp_path))
