"""The code that the pages show runs, and the configs that they show load.

docs/extending.md has a test of its own in tests/laws, docs/mmseg.md in tests/tasks/mmseg_bridge,
docs/adapters.md in tests/backbone/adapters, docs/models.md in test_models_page.py, docs/use.md in
test_use_page.py, docs/own_loop.md in tests/own_loop, docs/speed.md in tests/backbone.
"""

import re
import shutil

import pytest
import timm
import torch
from pages import PRESENT, ROOT, blocks, name_of

import dtem
from pipeline.config.load import load_config

ELSEWHERE = {"docs/adapters.md", "docs/models.md", "docs/extending.md", "docs/mmseg.md", "docs/use.md"}
ELSEWHERE |= {"docs/own_loop.md", "docs/speed.md"}
SHOWN = [
    (name_of(page), number, text)
    for page in PRESENT
    if name_of(page) not in ELSEWHERE
    for number, text in enumerate(blocks(page, "python"))
]
CONFIGS = [case for case in SHOWN if re.search("^(_base_|tasks|balancing) = ", case[2], re.M)]
REST = """
_base_ = ["_base_/merging/dtem.py", "_base_/schedule/dtem_modular.py", "_base_/engine/deepspeed.py"]
backbone = dict(name="vit_base_patch16_224")
output = "runs/{{ fileBasenameNoExtension }}"
"""
"""What a page leaves out where it shows the tasks alone."""
TASKS = 'tasks = dict(imagenet=dict(type="classification", data=dict(schema="classification", ...)))\n'
"""What it leaves out where it shows another part alone."""


def whole(text: str) -> str:
    """The config with what the page leaves out: `...` are the shards, and a part without `_base_` has the
    rest."""
    text = text if re.search("^(_base_|tasks) = ", text, re.M) else TASKS + text
    text = text.replace(", ...)", ', train="data/x", val="data/y")')
    return text if re.search("^_base_ = ", text, re.M) else REST + text


@pytest.fixture(scope="module")
def beside_configs(tmp_path_factory):
    """A copy of `configs`, as a reader's own config stands beside the project's."""
    folder = tmp_path_factory.mktemp("reader") / "configs"
    shutil.copytree(ROOT / "configs", folder)
    return folder


@pytest.mark.parametrize(("page", "number", "text"), CONFIGS, ids=lambda value: str(value)[:20])
def test_a_config_loads(page, number, text, beside_configs):
    path = beside_configs / "shown.py"
    path.write_text(whole(text))
    config = load_config(path)
    assert config.tasks and config.merging.policy == "dtem"


def test_the_readmes_python_runs():
    names: dict = {}
    (code,) = [text for page, _, text in SHOWN if page == "README.md" and text.startswith("import torch")]
    exec(compile(code, "README.md", "exec"), names)
    assert names["out"].final.tokens.shape == (2, 11, 384)
    assert names["grid"].shape == names["own"].shape == (2, 384, 14, 14)


def test_every_block_of_python_is_looked_at():
    looked_at = [
        *CONFIGS,
        *(case for case in SHOWN if case[2].startswith(("import torch", "import timm, dtem"))),
    ]
    sketches = [case for case in SHOWN if case not in looked_at]
    # tests/docs/test_first_hour.py types the other page
    assert {page for page, _, _ in sketches} <= {"docs/design.md", "docs/first_hour.md"}


def test_the_lines_that_merge_in_a_model_run(tmp_path, monkeypatch):
    """Two lines are enough, and with an adapter as well; here without downloads."""
    create = timm.create_model

    def drawn(name, pretrained):
        torch.manual_seed(0)
        return create(name)

    dtem.save_adapter(dtem.patch(drawn("deit_small_patch16_224", False)), tmp_path / "adapter")
    monkeypatch.setattr(timm, "create_model", drawn)
    shown = [text for page, _, text in SHOWN if page == "README.md" and "dtem.patch(" in text]
    for text, side in zip(shown, (256, 224), strict=True):
        code = text.replace("hf-hub:user/deit-small-dtem", str(tmp_path / "adapter"))
        assert len([line for line in code.splitlines() if line and not line.startswith("import")]) <= 2
        names: dict = {}
        exec(compile(code, "README.md", "exec"), names)
        with torch.no_grad():
            state = names["model"].encode(torch.zeros(1, 3, side, side)).final
        assert state.tokens.shape[1] < (side // 16) ** 2 / 2
