"""A run whose policy has a reducer: trained, read back, measured beside others and exported."""

import json

import pytest
import torch
from tinyrun import tiny_plain

from launch.measure.planning import Aims
from launch.measure.sweep import sweep
from launch.saved.run import build, drawn_run, read_run
from pipeline.config.load import from_plain
from pipeline.errors import ConfigError
from pipeline.rng import seed_of
from pipeline.train.loop import train

MERGING = {"policy": "stvit", "reduction": 4, "options": {"recovery": True, "init_values": 0.5}}


@pytest.fixture(scope="module")
def semantic(digits, tmp_path_factory):
    """The folder of a run of three steps under `stvit` with recovery, all parts trained. 4 of 16 patches."""
    output = tmp_path_factory.mktemp("semantic") / "run"
    plain = tiny_plain(digits, output, merging=MERGING, train={"mode": "joint", "steps": 3})
    return train(from_plain(plain))


def parts(model):
    return {name: t for name, t in model.state_dict().items() if ".reducer." in name or ".recovery." in name}


def test_its_parts_are_read_back_and_drawn_where_they_are_to_be_untrained(semantic):
    run = read_run(semantic)
    own, untrained, plain = (build(run, policy) for policy in (None, "stvit_untrained", "tome"))
    assert parts(own) and all(torch.equal(t, run.tensors[name]) for name, t in parts(own).items())
    drawn = parts(untrained)
    assert drawn.keys() == parts(own).keys() and not parts(plain)
    weights = [name for name in drawn if name.endswith("q.weight")]
    assert weights and not any(torch.equal(drawn[name], parts(own)[name]) for name in weights)
    whole = {name: t for name, t in own.state_dict().items() if name not in drawn}
    assert all(torch.equal(t, untrained.state_dict()[name]) for name, t in whole.items())
    assert own.backbone.schedule((4, 4)) == (12, 0, 0)


def test_with_a_frozen_backbone_they_learn_alone(digits, tmp_path):
    plain = tiny_plain(digits, tmp_path / "run", merging=MERGING, train={"mode": "modular", "steps": 3})
    run = read_run(train(from_plain(plain)), "last")
    torch.manual_seed(seed_of(run.config.seed, "weights"))
    start = drawn_run(run.config).tensors
    moved = {name for name, t in build(run).state_dict().items() if not torch.equal(t, start[name])}
    assert moved and all(".reducer." in name or ".recovery." in name for name in moved)


def test_a_run_that_never_learned_it_is_told_so_and_left_out_of_a_board(trained):
    run = read_run(trained)
    with pytest.raises(ConfigError, match="has no part that its policy trains .*take _untrained"):
        build(run, "stvit")
    found = sweep([run], ["stvit", "stvit_untrained"], Aims([4]), rounds=0, lenient=True, seeds=[0, 1])[0]
    assert [point.policy for point in found.points] == ["stvit_untrained"]
    assert len(found.points[0].scores["top1"]) == 1, "what starts alike is one model for all seeds"
    assert [(own.policy, own.target) for own in found.left_out] == [("stvit", None)]


def test_an_evaluation_is_that_of_its_own_model(semantic, dtem, tmp_path):
    dtem("evaluate", semantic, "--out", tmp_path / "own.json")
    dtem("evaluate", semantic, "--out", tmp_path / "same.json", "--policy", "stvit", "--reduction", "[0,12]")
    own, same = (json.loads((tmp_path / name).read_text()) for name in ("own.json", "same.json"))
    assert own["scores"] == same["scores"] and own["scores"]


@pytest.mark.slow
def test_an_exported_program_has_them(semantic, dtem, tmp_path):
    dtem("export", semantic, "--out", tmp_path / "out", "--format", "pt2")
    program = torch.export.load(tmp_path / "out/model.pt2").module()
    images = torch.randn(2, 3, 32, 32)
    model = build(read_run(semantic))
    with torch.no_grad():
        wanted = model.tasks["digits"].logits(model.encode("digits", images))
        torch.testing.assert_close(program(images), wanted, atol=1e-4, rtol=1e-4)
