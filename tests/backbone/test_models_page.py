"""The code of docs/models.md runs, with tiny models in folders that are named as those on the hub."""

import torch
import transformers
from pages import ROOT, blocks
from PIL import Image
from tiny_hugging_face import inputs, library_model

import dtem


def test_the_code_for_transformers_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    library_model("ViTForImageClassification").save_pretrained("google/vit-base-patch16-224")
    size = {"height": 64, "width": 64}
    transformers.ViTImageProcessor(size=size).save_pretrained("google/vit-base-patch16-224")
    library_model("DINOv3ViTModel").save_pretrained("facebook/dinov3-vits16-pretrain-lvd1689m")
    Image.new("RGB", (70, 50), "brown").save("cat.png")
    dtem.save_adapter(dtem.patch(library_model("DINOv3ViTModel"), reduction=5), "my_adapter")
    (code,) = [text for text in blocks(ROOT / "docs/models.md", "python") if "transformers" in text]
    names: dict = {}
    exec(compile(code, "docs/models.md", "exec"), names)
    assert len(names["found"]) == 5 and names["classify"].model.reduction == 13
    model, x = names["model"], inputs("DINOv3ViTModel")["pixel_values"]
    with torch.no_grad():
        assert model.encode(x).final.tokens.shape[1] == model(x).last_hidden_state.shape[1] - 15
