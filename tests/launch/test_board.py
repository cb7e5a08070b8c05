"""`dtem board`: all policies on the same weights and images, measured as a sweep measures."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_policies import Asking, Refusing
from torch.nn import functional as F

from launch.board.files import plain_board, text_of
from launch.board.page import page_of
from launch.board.policies import asked_policies
from launch.board.rows import table_of
from launch.measure.planning import Aims
from launch.measure.points import LeftOut
from launch.measure.sweep import sweep
from launch.saved.policy_names import CONTROL, FREE, KINDS, TRAINED, kind_of
from launch.saved.run import build, read_run
from pipeline.config.schema import MergingConfig
from pipeline.data.stream import build_eval_loader
from pipeline.interfaces import TaskOutput
from pipeline.merging.policies import POLICIES
from pipeline.objectives.distill import gaps as divergences

HOSTILE = "</td></table><script>alert(1)</script><img src=x onerror=alert(2)>'\"&"
NAMED = ["random", "dtem_untrained", "tome", "dtem"]
HOW = dict(rounds=1, compared=True, lenient=True, seeds=[0, 1])


@pytest.fixture(scope="module")
def result(trained):
    """A board of a classifier, with one point that no policy reaches."""
    return sweep([read_run(trained)], NAMED, Aims([0.8, 0.05]), **HOW)[0]


@torch.no_grad()
def measured_anew(run, task, policy, reduction):
    """The divergence of a policy from the unmerged model over a split, in nats, batch by batch."""
    whole, merged = build(run, "none"), build(run, policy)
    total, count, side = 0.0, 0, whole.backbone.patch_size[0]
    for batch in build_eval_loader(task, run.config.tasks[task].data, rank=0, world_size=1):
        batch = batch.to("cpu")
        height, width = batch.images.shape[-2:]
        images = F.pad(batch.images, (0, -width % side, 0, -height % side))
        own, other = (
            model.tasks[task].log_probs(
                TaskOutput(torch.zeros(()), predictions=model.tasks[task].predictions(output, batch)), batch
            )
            for model, output in (
                (merged, merged.encode(task, images, reduction=reduction)),
                (whole, whole.encode(task, images)),
            )
        )
        gaps = divergences(own, other)
        counts = torch.ones_like(gaps) if own.counts is None else own.counts
        total, count = total + float((gaps * counts).sum()), count + int(counts.sum())
    return total / count


def test_the_divergence_is_that_of_the_predictions_from_the_unmerged_models(trained, result):
    run = read_run(trained)
    assert result.whole.scores["divergence"] == [0.0]
    for point in result.points:
        if point.policy in ("tome", "dtem"):
            again = measured_anew(run, "digits", point.policy, list(point.schedule))
            assert point.scores["divergence"] == [pytest.approx(again, rel=1e-3, abs=1e-7)] and again > 0


@pytest.mark.parametrize("name", ["segmenter", "captioner"])
def test_cells_of_masks_and_words_of_captions_diverge_too(request, name):
    """Images of several sizes, some of which do not divide by the patch; captions of several lengths."""
    run = read_run(request.getfixturevalue(name))
    louder = {key: 100 * tensor for key, tensor in run.tensors.items() if key.endswith("conv_seg.weight")}
    run = replace(run, tensors=run.tensors | louder)  # that of a mask would be rounding, after four steps
    found = sweep([run], ["tome"], Aims([2]), **HOW)[0]
    (point,) = found.points
    again = measured_anew(run, "scenes", "tome", 2)
    assert point.scores["divergence"] == [pytest.approx(again, rel=1e-3, abs=1e-7)] and again > 1e-6
    assert list(found.units)[-1] == "divergence" and point.peak_mib is not None and point.peak_mib > 0


def test_a_board_scores_what_a_sweep_scores_and_again_the_same(trained, result):
    run = read_run(trained)
    alone = sweep([run], ["tome", "dtem"], Aims([0.8]), rounds=0)[0]
    again = sweep([run], NAMED, Aims([0.8, 0.05]), **HOW)[0]
    for point in (alone.whole, *alone.points):
        (own,) = (one for one in (result.whole, *result.points) if one.policy == point.policy)
        assert point.scores == {name: pytest.approx(own.scores[name]) for name in point.scores}
        assert (own.macs, own.schedule, point.peak_mib) == (point.macs, point.schedule, None)
    for first, second in zip((result.whole, *result.points), (again.whole, *again.points), strict=True):
        assert first.macs == second.macs and first.peak_mib == pytest.approx(second.peak_mib, rel=0.05)
        assert first.scores == {name: pytest.approx(values) for name, values in second.scores.items()}


def test_what_is_drawn_is_measured_for_each_seed(result):
    drawn = {point.policy: len(point.scores["top1"]) for point in result.points}
    assert drawn == {"random": 2, "dtem_untrained": 2, "tome": 1, "dtem": 1}
    (random,) = (point for point in result.points if point.policy == "random")
    assert random.scores["divergence"][0] != random.scores["divergence"][1]


def test_a_point_that_is_not_reached_and_a_policy_that_cannot_serve_are_named(trained, result, monkeypatch):
    assert {own.policy for own in result.left_out} == set(NAMED)
    assert all(own.target == 0.05 and "cannot be reached" in own.reason for own in result.left_out)
    monkeypatch.setitem(POLICIES._factories, "refusing", Refusing)
    run = read_run(trained)
    unlearned = replace(
        run, tensors={name: tensor for name, tensor in run.tensors.items() if ".metric." not in name}
    )
    found = sweep([unlearned], ["tome", "dtem", "refusing"], Aims([2]), **HOW)[0]
    assert [point.policy for point in found.points] == ["tome"]
    said = {own.policy: (own.target, own.reason) for own in found.left_out}
    assert said["dtem"][0] is None and "has no metric embedding" in said["dtem"][1]
    assert said["refusing"] == (2, Refusing.REASON)
    table = table_of(found)
    assert [row[-1] for row in table.rows] == ["", "", "left out: 1", "left out: 2"]
    assert [reason.partition(":")[0] for reason in table.reasons] == ["DTEM", "refusing at 2"]


def test_a_point_of_one_of_several_schedules_is_named_with_it(result):
    lacking = LeftOut("atc", 0.8, "its rates cannot be learned", "learned")
    points = [replace(point, kind="even") for point in result.points]
    table = table_of(replace(result, points=points, left_out=[lacking]))
    (row,) = (row for row in table.rows if row[-1] == "left out: 1")
    assert dict(zip(table.columns, row, strict=True))["schedule"] == "learned"
    assert table.reasons == ["ATC at 0.8, learned: its rates cannot be learned"]


def test_what_is_no_number_is_not_available_and_leaves_json_readable(trained):
    run = read_run(trained)
    broken = {name: tensor * float("nan") for name, tensor in run.tensors.items() if "head." in name}
    (found,) = sweep([replace(run, tensors=run.tensors | broken)], ["tome"], Aims([2]), **HOW)
    assert found.points[0].scores["divergence"] == [None] and "n/a" in text_of(found)
    json.dumps(plain_board([found]), allow_nan=False)


def test_a_policy_that_needs_options_stops_no_other(trained, monkeypatch):
    """It is named in a board, and built by a run that gives them."""
    monkeypatch.setitem(POLICIES._factories, "asking", Asking)
    assert kind_of("asking") == FREE and "asking" in asked_policies(["all"])
    run = read_run(trained)
    (found,) = sweep([run], ["tome", "asking"], Aims([2]), **HOW)
    assert [point.policy for point in found.points] == ["tome"]
    assert [(own.policy, "'share'" in own.reason) for own in found.left_out] == [("asking", True)]
    own = replace(run.config, merging=MergingConfig(policy="asking", options={"share": 0.5}))
    assert build(replace(run, config=own)).backbone.policy.share == 0.5


def test_the_table_has_the_kinds_apart_and_the_speed_with_its_range(result):
    table = table_of(result)
    kinds = [row[1] for row in table.rows[1:5]]
    assert kinds == sorted(kinds, key=KINDS.index) and set(kinds) == {CONTROL, FREE, TRAINED}
    cells = dict(zip(table.columns, table.rows[1], strict=True))
    assert "±" in cells["top1 %"] and " to " in cells["lowest to highest"] and cells["point"] == "0.8"
    text = text_of(result)
    for said in ("with the seeds 0, 1", "25 samples of val", "the median of 1 rounds", "each once"):
        assert said in text
    assert "cannot be reached" in text


def test_a_backbone_that_learned_under_a_policy_is_told_to_be_at_home_with_it(trained, result):
    assert "the backbone learned while tokens merged by DTEM, so it is at home with that" in text_of(result)
    run = read_run(trained)
    modular = replace(run.config, train=replace(run.config.train, mode="modular"))
    (found,) = sweep([replace(run, config=modular)], ["tome"], Aims([2]), rounds=0)
    assert "at home" not in text_of(found), "embeddings alone learned"


def test_all_are_all_that_there_are_with_what_they_are_held_against():
    found = asked_policies(["all"])
    merging = {name for name in POLICIES.names() if POLICIES.build(name).merges}
    learned = {f"{name}_untrained" for name in merging if POLICIES.build(name).learned}
    assert set(found) == merging | learned and len(found) == len(set(found))
    kinds = [kind_of(name) for name in found]
    assert kinds == sorted(kinds, key=KINDS.index)
    assert kind_of("none") == KINDS[0] and kind_of("random") == kind_of("dtem_untrained") == CONTROL


def test_the_command_writes_a_table_a_plot_and_one_page(trained, dtem, tmp_path):
    out = ("--rounds", "1", "--out", tmp_path)
    said = dtem("board", trained, "--policies", "random,tome,dtem", "--merged", "0.5", "--seeds", "3,4", *out)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"board.json", "board.md", "board.png", "board.svg", "index.html"}
    board = json.loads((tmp_path / "board.json").read_text())
    (task,) = board["tasks"]
    assert [row["policy"] for row in task["points"]] == ["none", "random", "tome", "dtem"]
    assert [row["policy_kind"] for row in task["points"]] == list(KINDS)
    assert task["conditions"]["seeds"] == [3, 4] and task["protocol"] and task["left_out"] == []
    assert all(row["schedule"] == task["points"][1]["schedule"] for row in task["points"][1:])
    text = (tmp_path / "board.md").read_text()
    assert "| DTEM " in text and "Protocol:" in text and "| DTEM " in said
    page = (tmp_path / "index.html").read_text()
    assert page.count("<svg") >= 2 and "divergence from the unmerged model" in page and "src=" not in page


def test_nothing_of_a_model_or_a_reason_becomes_markup(result):
    conditions = result.conditions | {"runs": [HOSTILE], "split": HOSTILE}
    strange = replace(result, task=HOSTILE, conditions=conditions, left_out=[LeftOut("tome", None, HOSTILE)])
    page = page_of([strange])
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page


def test_runs_that_are_at_home_in_other_weights_are_refused(trained, dtem, tmp_path, monkeypatch):
    import launch.published.measured as measured

    run = read_run(trained)
    merging = replace(run.config.merging, policy="tome", options={})
    moved = {
        name: tensor + 1 if name.endswith("pos_embed") else tensor for name, tensor in run.tensors.items()
    }
    other = replace(run, tensors=moved, config=replace(run.config, merging=merging))
    runs = iter([run, other])
    monkeypatch.setattr(measured, "read_run", lambda *_: next(runs))
    said = dtem("board", trained, trained, "--out", tmp_path / "out", code=2)
    assert "trained under different policies" in said and "a board of its own" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--policies", "all,tme"], "did you mean 'tome'"),
        (["--seeds", "1,1"], "names a seed twice"),
        (["--within", "2"], "give a share of the blocks"),
        (["--rounds", "-1"], "rounds is -1"),
        (["--adapter", "a"], "goes with a published model"),
    ],
)
def test_a_mistake_is_told_before_the_work(trained, dtem, tmp_path, words, said):
    assert said in dtem("board", trained, *words, "--out", tmp_path / "out", code=2)
    assert not list(tmp_path.rglob("*.*"))
