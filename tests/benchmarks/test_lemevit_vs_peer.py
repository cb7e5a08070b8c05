"""The comparison of LeMeViT with its authors' code says that logits are the same where they are, and fails
elsewhere."""

import argparse

import pytest
import torch
from contestants import CLASSES
from lemevit_vs_peer import CASES, SAME, compared, result_of
from torch import nn

from pipeline import build_backbone
from pipeline.backbone.lemevit.sizes import SIZES
from pipeline.model import MultiTaskModel
from pipeline.objectives import OBJECTIVES
from tasks.classification import ClassificationTask

CASE = "LeMeViT-Tiny, 160x160"


def ours_again(name: str) -> nn.Module:
    backbone = build_backbone(name, img_size=160)
    tasks = {"imagenet": ClassificationTask(backbone, num_classes=CLASSES)}
    return MultiTaskModel(backbone, tasks, OBJECTIVES.build("supervised"))


def test_a_peer_with_our_rule_has_our_logits():
    (found,) = compared(argparse.Namespace(images=2, sizes=[CASE], peer={}), ours_again)
    assert found["scores"]["largest difference"] <= 1e-6
    assert found["scores"]["standard deviation over images"] > 100 * SAME


def test_logits_that_differ_are_an_error_and_without_a_peer_nothing_is_compared():
    with pytest.raises(RuntimeError, match=f"{CASE}: logits differ by 2"):
        result_of(CASE, torch.zeros(2, 5), torch.full((2, 5), 2 * SAME))
    assert not list(compared(argparse.Namespace(images=1, sizes=[CASE], peer={})))


def test_a_peer_that_fails_is_named_and_left_out(capsys, tmp_path):
    (tmp_path / "lemevit.py").write_text("import no_such_package\n")
    peer = {"lemevit": str(tmp_path / "lemevit.py")}
    assert not list(compared(argparse.Namespace(images=1, sizes=[CASE], peer=peer)))
    assert f"peer {CASE} does not run here" in capsys.readouterr().out


def test_every_size_is_compared():
    assert {name for name, _ in CASES.values()} == set(SIZES)
