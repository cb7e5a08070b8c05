"""What `benchmarks/board.py` records of a board, and the saliency map on which a published model is held
against itself."""

import board
import saliency
import torch
from torch import nn

from launch.measure.planning import Aims
from launch.measure.points import DIVERGENCE, LeftOut
from launch.measure.sweep import sweep
from launch.saved.run import read_run


def test_a_row_has_every_policy_with_its_kind_and_agrees_with_itself(trained):
    policies = ["random", "dtem_untrained", "tome", "dtem"]
    how = dict(rounds=1, compared=True, lenient=True, seeds=[0, 1])
    (result,) = sweep([read_run(trained)], policies, Aims([0.9, 0.02]), **how)
    result.left_out.append(LeftOut("strange", None, "it has no class token"))
    (row,) = board._rows(result, [0.9, 0.02], "{} of the MACs")
    assert row["scores"].keys() == {"none", *row["policies"]} and row["policies"].keys() == set(policies)
    assert {policy: len(values) for policy, values in row["scores"].items()} == {
        "none": 1,
        "random": 2,
        "dtem_untrained": 2,
        "tome": 1,
        "dtem": 1,
    }
    assert row["reduction"] == row["policies"]["dtem"]["reduction"]
    assert row["name"] == "top1, 90% of the MACs" and row["left_out"] == {"strange": "it has no class token"}
    kinds = ("control", "control", "training-free", "trained")
    assert row["kinds"] == dict(zip(policies, kinds, strict=True))
    assert row["images_per_s"].keys() == row["peak_mib"].keys() == row["scores"].keys()
    assert len(row[DIVERGENCE]["random"]) == 2 and row["images_per_s"]["tome"]["n"] == 1


def test_a_saliency_map_is_a_probability_at_each_pixel():
    signal, whole = saliency.SaliencyMap(nn.Identity()), torch.tensor([[[[0.0, 2.0]]], [[[-1.0, 3.0]]]])
    merged = whole + torch.tensor([[[[0.0, 0.0]]], [[[2.0, 0.0]]]])
    found = signal.compare(merged, whole)
    p, q = torch.tensor(-1.0).double().sigmoid(), torch.tensor(1.0).double().sigmoid()
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()) / 2
    assert list(found) == list(signal.metric_units) == ["agreement", DIVERGENCE]
    torch.testing.assert_close(found[DIVERGENCE], torch.stack([torch.zeros(()).double(), expected]))
    torch.testing.assert_close(found["agreement"], torch.tensor([1.0, 0.5]).double())
