import csv
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from launch.measure.evaluator import evaluator_of
from launch.measure.planning import Aims
from launch.measure.sweep import sweep
from launch.report.sweep_plot import Curve, Plot, apart, draw_plots, least_height
from launch.report.tables import markdown, spread
from launch.saved.run import SavedRun, build, read_run
from pipeline.backbone.rotary import RULES, RotaryRule
from pipeline.config.load import load_config
from pipeline.config.schema import MergingConfig
from pipeline.data.stream import build_eval_loader
from pipeline.errors import ConfigError
from pipeline.merging.schedule import resolve_schedule
from pipeline.model import build_model
from pipeline.train.evaluate import evaluate

POLICIES = ["random", "tome", "dtem_untrained", "dtem"]


@pytest.fixture(scope="module")
def swept(trained):
    return sweep([read_run(trained)], POLICIES, Aims([0.85, 0.7]), rounds=1)[0]


@pytest.mark.parametrize("listed", [[2, 0], [3, 1, 0], [4]])
def test_r_of_each_block_stays_that(listed):
    """A tuple of two would be r and an inflection."""
    (target,) = Aims([listed], exact=True).targets
    assert hash(target) and resolve_schedule(target, 4, 65, 1) == resolve_schedule(listed, 4, 65, 1)


def test_one_pass_over_all_models_scores_what_each_scores_alone(trained, swept):
    run = read_run(trained)
    for point in (swept.whole, *swept.points):
        evaluator = evaluator_of(build(run, point.policy))
        loader = build_eval_loader("digits", run.config.tasks["digits"].data, rank=0, world_size=1)
        alone = evaluate(evaluator, {"digits": loader}, reduction=list(point.schedule))["digits"]
        assert {name: values[0] for name, values in point.scores.items()} == pytest.approx(
            {k: alone[k] for k in point.scores}
        )


def test_points_are_at_most_the_asked_macs_and_close_to_them(swept):
    assert [point.policy for point in swept.points] == [policy for policy in POLICIES for _ in range(2)]
    for point in swept.points:
        ratio = point.macs / swept.whole.macs
        assert point.target - 0.08 < ratio <= point.target + 0.001, point


def test_macs_hold_the_metric_and_the_head(swept):
    assert swept.whole.metric_macs == 0 and swept.whole.head_macs == 24 * 10
    assert all((point.metric_macs > 0) == (point.policy != "random") for point in swept.points)
    assert swept.whole.tokens == (17, 17, 17) and swept.metric == "top1"


def test_seeds_of_one_backbone_give_one_score_where_the_embedding_plays_no_part(trained):
    run = read_run(trained)
    other = replace(
        run, tensors={name: -tensor if ".metric." in name else tensor for name, tensor in run.tensors.items()}
    )
    result = sweep([run, other], ["tome", "dtem"], Aims([2]), rounds=0)[0]
    assert [len(point.scores["top1"]) for point in (result.whole, *result.points)] == [1, 1, 2]
    moved = replace(
        run,
        tensors={
            name: tensor + 1 if name.endswith("pos_embed") else tensor for name, tensor in run.tensors.items()
        },
    )
    result = sweep([run, moved], ["tome"], Aims([2]), rounds=0)[0]
    assert len(result.points[0].scores["top1"]) == 2


@pytest.mark.parametrize("rule", RULES)
def test_all_policies_merge_rotary_positions_as_the_run(rule):
    config = load_config("configs/cifar10_rope_vit.py", [f"merging.rotary={rule}"])
    run = SavedRun(Path("a"), config, dict(build_model(config).state_dict()), False, {})
    for policy in ("none", "random", "tome", "dtem_untrained"):
        assert build(run, policy).backbone.rotary_rule == RotaryRule(rule)
    other = replace(run, config=replace(config, merging=MergingConfig(rotary=next(iter({*RULES} - {rule})))))
    with pytest.raises(ConfigError, match="how rotary positions merge"):
        sweep([run, other], ["tome"], Aims([2]), rounds=0)


def test_runs_of_two_setups_are_not_mixed(trained):
    run = read_run(trained)
    other = replace(run, config=replace(run.config, backbone=replace(run.config.backbone, drop_path=0.5)))
    with pytest.raises(ConfigError, match="differ in backbone or tasks"):
        sweep([run, other], ["tome"], Aims([2]), rounds=0)


def test_runs_whose_labels_stand_for_other_classes_are_not_mixed(trained):
    """Each image is read once for all of them, and has one label."""
    run = read_run(trained)
    other = replace(run, facts=run.facts | {"classes": {"digits": run.classes("digits")[::-1]}})
    with pytest.raises(
        ConfigError, match="have other classes of task 'digits', or the same in another order"
    ):
        sweep([run, other], ["tome"], Aims([2]), rounds=0)


def test_the_command_writes_table_json_csv_and_plots(trained, dtem, tmp_path):
    said = dtem(
        "sweep",
        trained,
        trained,
        "--policy",
        "tome,dtem",
        "--reduction",
        "0,2",
        "--rounds",
        "1",
        "--out",
        tmp_path,
    )
    rows = json.loads((tmp_path / "sweep.json").read_text())[0]["points"]
    assert [(row["policy"], row["target"]) for row in rows] == [("none", 0), ("tome", 2), ("dtem", 2)]
    assert (
        rows[2]["schedule"] == [2, 2, 2]
        and len(rows[2]["scores"]["top1"]) == 2
        and rows[1]["gflops"] == 2 * rows[1]["gmacs"]
    )
    assert "| dtem" in said and "GMACs (papers' GFLOPs)" in said and "images/s" in said
    with open(tmp_path / "sweep.csv", encoding="utf-8") as file:
        assert [row["policy"] for row in csv.DictReader(file)] == ["none", "tome", "dtem"]
    assert (tmp_path / "sweep_digits.png").read_bytes().startswith(b"\x89PNG")
    assert all(
        f">{name}<" in (tmp_path / "sweep_digits.svg").read_text()
        for name in ("ToMe", "DTEM", "unmerged", "top-1 accuracy (%)")
    )


def test_reductions_of_all_forms_are_points(trained, dtem, tmp_path):
    forms, out = "1,0.9,(2,-1),[2,1,0]", ("--rounds", "0", "--out", tmp_path)
    said = dtem("sweep", trained, "--policy", "tome", "--reduction", forms, *out)
    rows = json.loads((tmp_path / "sweep.json").read_text())[0]["points"][1:]
    assert [row["target"] for row in rows] == [1, 0.9, [2, -1], [2, 1, 0]]
    tokens = 16 + 1
    expected = [resolve_schedule(spec, 3, tokens, 1) for spec in (1, 0.9, (2, -1.0), [2, 1, 0])]
    assert [tuple(row["schedule"]) for row in rows] == expected
    cells = {cell.strip() for cell in said.split("|")}
    assert {"(2,-1)", "[2,1,0]"} <= cells


def test_a_reduction_below_0_is_refused(trained, dtem):
    assert "no policy can be run" in dtem("sweep", trained, "--policy", "tome", "--reduction", "-1", code=2)


@pytest.mark.parametrize(
    "argv",
    [["--macs", "1.5"], ["--macs", "half"], ["--reduction", ","], ["--macs", "0.5", "--reduction", "2"]],
)
def test_a_wrong_command_line_exits_with_2(argv, capsys):
    from launch import cli

    with pytest.raises(SystemExit) as done:
        cli.main(["sweep", "runs/x", *argv])
    assert done.value.code == 2


def test_a_point_that_cannot_be_reached_is_left_out_and_said_so(trained, caplog):
    points = sweep([read_run(trained)], ["tome"], Aims([0.05, 0.8]), rounds=0)[0].points
    assert [point.target for point in points] == [
        0.8
    ] and "(5% of the unmerged) cannot be reached" in caplog.text


def test_a_sweep_without_points_or_with_strange_policies_is_refused(trained, dtem):
    assert "no policy can be run at any of the asked points" in dtem(
        "sweep", trained, "--macs", "0.05", code=2
    )
    assert "unknown merge policy 'tme'; did you mean 'tome'" in dtem(
        "sweep", trained, "--policy", "tme", code=2
    )


def test_within_goes_with_shares_and_is_one_itself(trained, dtem, tmp_path):
    said = dtem("sweep", trained, "--reduction", "2", "--within", "0.5", "--out", tmp_path, code=2)
    assert "within goes with shares (--macs, --merged)" in said
    for share in ("2", "0", "-1", "nan"):
        assert "give a share of the blocks, in (0, 1]" in dtem(
            "sweep", trained, "--within", share, "--out", tmp_path, code=2
        )
    half = sweep([read_run(trained)], ["tome"], Aims([0.85], within=0.5), rounds=0)[0].points[0]
    assert half.schedule[0] > 0 == half.schedule[-1]


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0, 1.0], [9.9, 10.0], [0.0, 0.1, 5.0, 10.0], []])
def test_names_of_curves_stand_apart_and_within_the_axes(values):
    places = apart(values, 0.6, 0.0, 10.0)
    assert all(0.3 <= place <= 9.7 + 1e-9 for place in places)
    assert all(later - place >= 0.6 - 1e-9 for place, later in pairwise(places))


@pytest.mark.parametrize(
    ("unit", "score", "samples", "least"),
    [("%", 60.0, 50_000, 5.0), ("%", 50.0, 100, 20.0), ("%", 4.28, 6, 33.1), ("", 1.25, 500, 0.25)],
)
def test_noise_does_not_fill_a_plot(unit, score, samples, least, tmp_path):
    """Scores that differ by a thousandth lie in a height of a few points, or of the error of few samples."""
    whole = Curve("none", [4e6], [[score]])
    plot = Plot([Curve("tome", [3e6], [[score * 0.999]])], whole, "x", "x", unit, "n", samples)
    assert least_height(score, unit, samples) == pytest.approx(least, rel=0.01)
    text = draw_plots([plot], tmp_path / "a")[1].read_text()
    ticks = [float(tick.replace("\u2212", "-")) for tick in re.findall(r">(\u2212?[\d.]+)</text>", text)]
    assert max(ticks) - min(ticks) > 0.5 * least


def test_equal_plots_are_equal_files(tmp_path):
    whole, curve = Curve("none", [4e6], [[90.0]]), Curve("tome", [3e6, 2e6], [[80.0, 82.0], [70.0, 71.0]])
    plots = [Plot([curve], whole, "top1", "x"), Plot([curve], whole, "top5", "y")]
    first = [path.read_bytes() for path in draw_plots(plots, tmp_path / "a")]
    assert first == [path.read_bytes() for path in draw_plots(plots, tmp_path / "b")]


def test_tables_line_up():
    table = markdown(["policy", "top1"], [["tome", "1"], ["dtem_untrained", "12.345"]])
    assert len({len(line) for line in table.splitlines()}) == 1 and table.splitlines()[1].endswith("-: |")
    assert spread([1.0]) == "1.00" and spread([1.0, 3.0]) == "2.00 ± 1.00"
