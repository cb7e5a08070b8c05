"""docs/models.md: its table is what trying says, and its code runs."""

import re

import models_table as table
import pytest
import timm
import tiny_torch_hub
import torch
import transformers
from pages import ROOT, blocks
from PIL import Image
from tiny import SIZES
from tiny_hugging_face import inputs, library_model

import dtem
from pipeline.backbone.rotary import RULES

PAGE = (ROOT / "docs/models.md").read_text()
LISTED = PAGE.partition(table.BEGIN)[2].partition(table.END)[0]
ENTRIES = [
    (kind, re.findall("`([^`]+)`", names), reason or None)
    for kind, names, _, reason in re.findall(
        r"\* ([A-Z][^:`]*): ((?:`[^`]+`(?:, )?)+)\.( Refused: ([^.]*)\.)?", " ".join(LISTED.split())
    )
]
"""Row, its architectures, and why they are refused."""


def test_the_table_is_of_this_timm():
    assert f"timm {timm.__version__}:" in LISTED, "run python tests/helpers/models_table.py"


def test_every_architecture_of_the_classes_is_listed():
    named = [name for _, names, _ in ENTRIES for name in names]
    assert sorted(named) == sorted(table.architectures())
    shares = re.findall(r"\* `(\w+)`: (\d+) of (\d+) architectures merge", LISTED)
    assert [name for name, _, _ in shares] == [library.__name__ for library in table.CLASSES]
    assert sum(int(whole) for _, _, whole in shares) == len(named)
    assert all(int(merging) >= table.ENOUGH * int(whole) for _, merging, whole in shares)
    refused = sum(len(names) for _, names, reason in ENTRIES if reason)
    assert sum(int(whole) - int(merging) for _, merging, whole in shares) == refused


@pytest.mark.parametrize(("kind", "names", "reason"), ENTRIES, ids=lambda value: str(value)[:60])
def test_the_first_of_each_row_is_what_the_row_says(kind, names, reason):
    model = table.tiny(names[0])
    assert ", ".join(table.kind_of(model)) == kind
    assert table.obstacle_in(model) == reason


@pytest.mark.slow
def test_the_table_is_what_trying_says():
    assert LISTED.strip() == table.table().strip()


def test_a_row_without_a_no():
    rows = [line for line in LISTED.splitlines() if line.startswith("| ") and "| class |" not in line]
    assert len(rows) > 20 and not [row for row in rows if "| no |" in row.partition("| tasks |")[2]]


@pytest.mark.parametrize("rule", RULES)
def test_the_page_tells_of_each_rule(rule):
    assert f"| `{rule}`" in PAGE


def test_the_lines_of_the_page_run():
    """Two lines are enough to merge."""
    (text,) = [text for text in blocks(ROOT / "docs/models.md", "python") if "timm" in text]
    lines = [line for line in text.splitlines() if "dtem." in line and "unpatch" not in line]
    assert len(lines) == 1
    names = {"PRETRAINED": False}
    before, after = text.split("dtem.unpatch")
    exec(before, names)
    x = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        merged = names["model"](x)
        exec(f"dtem.unpatch{after}", names)
        assert merged.shape == names["model"](x).shape and not torch.equal(merged, names["model"](x))


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


def test_the_lines_for_torch_hub_run(tmp_path, monkeypatch):
    """Three with an adapter, here one that was taught on timm's model of the same weights."""
    monkeypatch.chdir(tmp_path)
    load, own = torch.hub.load, {"source": "local", "pretrained": False}

    def local(repository, model):
        assert (repository, model) == ("facebookresearch/dinov2", "dinov2_vits14_reg")
        return load(str(tiny_torch_hub.CODE / "dinov2"), "dinov2_tiny", num_register_tokens=4, **own)

    monkeypatch.setattr(torch.hub, "load", local)
    torch.manual_seed(0)
    base = local("facebookresearch/dinov2", "dinov2_vits14_reg")
    other = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=64, **SIZES | {"depth": 4})
    other.blocks.load_state_dict(base.blocks.state_dict())
    dtem.save_adapter(dtem.patch(other, reduction=5), "my_adapter")
    (code,) = [text for text in blocks(ROOT / "docs/models.md", "python") if "torch.hub" in text]
    names: dict = {}
    torch.manual_seed(0)
    exec(compile(code, "docs/models.md", "exec"), names)
    assert len([line for line in code.splitlines() if line and not line.startswith("import")]) == 2
    with torch.no_grad():
        assert names["model"].encode(torch.zeros(1, 3, 64, 64)).final.tokens.shape[1] == 5 + 64 - 4 * 5
