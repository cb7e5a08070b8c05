"""docs/models.md: its table is what trying says, and its code runs."""

import models_table as table
import pytest
import timm
import torch
from pages import ROOT, blocks

from pipeline.backbone.rotary import RULES

PAGE = (ROOT / "docs/models.md").read_text()
LISTED = PAGE.partition(table.BEGIN)[2].partition(table.END)[0]


def test_the_table_is_of_this_timm():
    assert f"timm {timm.__version__}:" in LISTED, "run python tests/helpers/models_table.py"


@pytest.mark.parametrize("library", table.CLASSES, ids=lambda library: library.__name__)
def test_nearly_all_architectures_of_a_class_merge(library):
    merging = refused = 0
    for name in table.architectures():
        assert f"`{name}`" in LISTED or not isinstance(table.tiny(name), table.CLASSES), name
        if isinstance(model := table.tiny(name), library):
            reason = table.obstacle_in(model)
            merging, refused = merging + (reason is None), refused + (reason is not None)
            assert reason is None or f"Refused: {reason}." in LISTED
    assert f"* `{library.__name__}`: {merging} of {merging + refused} architectures merge." in LISTED
    assert merging >= table.ENOUGH * (merging + refused)


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
    (text,) = blocks(ROOT / "docs/models.md", "python")
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
