"""`dtem sweep --schedule solved`: on other images than those that are reported, and never worse there than
even and early merges."""

import json
from dataclasses import replace

import pytest
import torch
from shardkit import samples, write_tar

from launch.exported.curves import curve_of
from launch.measure.planning import Aims
from launch.measure.solving import SolvedSchedules, Solving, divergence_of, solving_batches
from launch.measure.sweep import sweep
from launch.published.pictures import find_pictures
from launch.published.solving import apart_from
from launch.run_report.curves import _points
from launch.saved.run import build, read_run
from pipeline.backbone.macs import count_macs
from pipeline.data.targets import ClassificationTargets
from pipeline.errors import ConfigError
from pipeline.interfaces import StepSpec
from pipeline.objectives.distill import Distill

CPU = torch.device("cpu")
KINDS = ["even", "early", "solved"]
SOLVING = Solving(images=8)


def images_of(run, model, solving=SOLVING):
    (task,) = run.config.tasks
    return solving_batches(task, run.config.tasks[task].data, run.classes(task), model, solving)


@pytest.fixture(scope="module")
def swept(trained, tmp_path_factory):
    """The folder that the command wrote."""
    from launch import cli

    out = tmp_path_factory.mktemp("sweep")
    argv = ["sweep", trained, "--policy", "tome,dtem", "--schedule", ",".join(KINDS), "--macs", "0.85,0.75"]
    argv += ["--solve-images", 8, "--rounds", 0, "--out", out]
    assert cli.main([str(part) for part in argv]) == 0
    return out


@pytest.fixture(scope="module")
def found(swept):
    (result,) = json.loads((swept / "sweep.json").read_text())
    return result


def test_each_policy_has_a_point_for_each_target_and_schedule(found):
    points = [(row["policy"], row["kind"], row["target"]) for row in found["points"][1:]]
    expected = [(policy, kind, f) for policy in ("tome", "dtem") for kind in KINDS for f in (0.85, 0.75)]
    assert points == expected
    assert all(row["encoder_macs_ratio"] <= row["target"] for row in found["points"][1:])


def test_plot_report_and_card_keep_the_schedules_apart(found, swept):
    drawn = (swept / "sweep_digits.svg").read_text()
    assert all(f">{name}, {kind}<" in drawn for name in ("ToMe", "DTEM") for kind in KINDS)
    labels = {f"{policy}, {kind}" for policy in ("tome", "dtem") for kind in KINDS}
    assert _points(found, "top1").keys() == labels | {"none"}
    own = [row["schedule"] for row in found["points"] if row["policy"] in ("none", "dtem")]
    assert [point.reduction for point in curve_of(found, "dtem").points] == own


def test_the_images_to_solve_on_are_named(found, trained):
    config = read_run(trained).config
    told = {"source": config.tasks["digits"].data.train, "images": 8, "seed": config.seed}
    assert found["conditions"]["solved_on"] == told
    assert found["conditions"]["schedules"] == KINDS and found["conditions"]["split"] == "val"


def test_no_other_schedule_of_the_sweep_is_better_on_those_images(found, trained):
    run = read_run(trained)
    for policy in ("tome", "dtem"):
        model = build(run, policy)
        measure = divergence_of(model, images_of(run, model), CPU)
        rows = [row for row in found["points"] if row["policy"] == policy]
        for target in (0.85, 0.75):
            at = {row["kind"]: measure(row["schedule"]) for row in rows if row["target"] == target}
            assert at["solved"] <= min(at["even"], at["early"]) + 1e-9


def test_the_other_commands_take_what_is_printed(trained, dtem, tmp_path):
    out = ("--solve-images", 8, "--rounds", 0, "--out", tmp_path)
    said = dtem("sweep", trained, "--policy", "dtem", "--schedule", "solved", "--macs", "0.8", *out)
    *_, line = (line for line in said.splitlines() if "--reduction" in line)
    listed = line.split("--reduction ")[1].strip("'")
    (result,) = json.loads((tmp_path / "sweep.json").read_text())
    point = result["points"][1]
    assert json.loads(listed) == point["schedule"] and "solved on 8 images of" in said
    dtem("evaluate", trained, "--policy", "dtem", "--reduction", listed, "--out", tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["schedule"]["digits"] == point["schedule"]
    assert scores["scores"]["digits"]["top1"] == pytest.approx(point["scores"]["top1"][0])


def test_what_is_measured_is_the_loss_of_distillation(trained):
    run = read_run(trained)
    model = build(run, "dtem")
    batches = images_of(run, model)
    measure = divergence_of(model, batches, CPU)
    assert measure([0, 0, 0]) == 0 < measure([4, 3, 2])
    model.set_reduction("digits", [4, 3, 2])
    with torch.no_grad():
        losses = [float(Distill()(model, batch, StepSpec(relaxed=False)).loss) for batch in batches]
    sizes = [len(batch.images) for batch in batches]
    mean = sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)
    assert measure([4, 3, 2]) == pytest.approx(mean, rel=1e-3)


def test_no_label_is_read(trained):
    """Also none that the head does not have."""
    run = read_run(trained)
    model = build(run, "tome")
    batches = images_of(run, model)
    others = [replace(own, targets=ClassificationTargets(own.targets.labels + 1000)) for own in batches]
    measures = [divergence_of(model, images, CPU) for images in (batches, others)]
    assert measures[0]([4, 3, 2]) == measures[1]([4, 3, 2]) > 0


@pytest.mark.parametrize("kind", ["captioner", "segmenter"])
def test_every_task_has_a_divergence(kind, request):
    run = read_run(request.getfixturevalue(kind))
    model = build(run, "tome")
    measure = divergence_of(model, images_of(run, model), CPU)
    assert measure([0, 0, 0]) == 0 < measure([6, 4, 2])


def test_images_that_inference_pads_are_padded(segmenter):
    """Those of 44 pixels do not divide by the patch of 8."""
    run = read_run(segmenter)
    model, data = build(run, "tome"), run.config.tasks["scenes"].data
    shards = replace(data, train=f"{data.val}/val-00044.tar", val=None)
    batches = solving_batches("scenes", shards, run.classes("scenes"), model, SOLVING)
    assert {tuple(batch.images.shape[-2:]) for batch in batches} == {(48, 48)}
    assert all(not batch.images[..., 44:].any() and batch.images[..., :44].any() for batch in batches)


def test_images_are_drawn_from_the_seed(trained):
    run = read_run(trained)
    model = build(run, "tome")
    keys = [
        [key for batch in images_of(run, model, Solving(images=24, seed=seed)) for key in batch.keys]
        for seed in (0, 0, 1)
    ]
    assert keys[0] == keys[1] != keys[2] and len(keys[0]) == 24


def test_another_grid_has_the_same_shares_of_its_patches(trained):
    run = read_run(trained)
    model = build(run, "tome")
    solved = SolvedSchedules(model, images_of(run, model), "tome", CPU)
    for grid in ((4, 4), (8, 6)):
        schedule = solved(model.backbone, 0.8, grid)
        ratio = count_macs(model.backbone, grid, schedule).total / count_macs(model.backbone, grid, 0).total
        assert 0.7 < ratio <= 0.8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--schedule", "solvd"], "schedule is 'solvd'; give one or more of even, early, solved"),
        (["--schedule", "solved", "--merged", "0.5"], "give --macs in place of --merged"),
        (["--schedule", "solved", "--reduction", "2"], "a reduction says r of each block itself"),
        (["--schedule", "early", "--within", "0.5"], "within says which blocks merge"),
        (["--schedule", "solved", "--split", "train"], "another split than train"),
        (["--schedule", "solved", "--solve-images", "0"], "--solve-images is 0; give 1 or more"),
        (["--solve-on", "data"], "go with --schedule solved"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(trained, dtem, tmp_path, options, said):
    assert said in dtem("sweep", trained, "--policy", "tome", *options, "--out", tmp_path, code=2)


def test_a_task_without_training_shards_needs_others(trained):
    data = replace(read_run(trained).config.tasks["digits"].data, train=None)
    with pytest.raises(ConfigError, match="task 'digits' has no data.train.*give --solve-on SHARDS"):
        Solving().data_of("digits", data)
    assert Solving("others").data_of("digits", data).train == "others"


def test_a_reduction_is_not_solved_by_other_commands(trained, dtem):
    said = dtem("evaluate", trained, "--reduction", "solved", code=2)
    assert "`dtem sweep --schedule solved` prints it" in said


def test_shards_that_are_reported_on_are_not_solved_on(trained, dtem, tmp_path):
    val = read_run(trained).config.tasks["digits"].data.val
    options = ("--schedule", "solved", "--solve-on", f"{val}/val-00000.tar", "--out", tmp_path)
    assert "holds shards that are trained on" in dtem("sweep", trained, *options, code=2)


def test_several_processes_are_refused(monkeypatch, trained):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="solved in one process, and a launcher started 2"):
        sweep([read_run(trained)], ["tome"], Aims([0.8], schedules=["solved"]), rounds=0)


def test_early_is_the_first_half_of_the_blocks(trained):
    (result,) = sweep([read_run(trained)], ["tome"], Aims([0.85], schedules=["even", "early"]), rounds=0)
    (half,) = sweep([read_run(trained)], ["tome"], Aims([0.85], within=0.5), rounds=0)
    assert [point.kind for point in result.points] == ["even", "early"]
    assert result.points[1].schedule == half.points[0].schedule
    assert Aims([0.5], merged=True, schedules=["early"]).kind == "share of the patches that is merged"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    bare = [(name, data) for name, data in samples("v", 24) if name.endswith("png")]
    write_tar(folder / "x.tar", bare)
    return folder


def test_a_published_model_is_solved_on_pictures_that_are_not_reported(pictures, dtem, tmp_path):
    model = ["timm:test_vit", "--no-pretrained", "--img-size", 64, "--data", pictures]
    options = ["--policy", "tome", "--schedule", "even,solved", "--macs", "0.8", "--solve-images", 8]
    dtem("sweep", *model, *options, "--rounds", 0, "--out", tmp_path)
    (found,) = json.loads((tmp_path / "sweep.json").read_text())
    assert found["conditions"]["samples"] == 16
    assert found["conditions"]["solved_on"] == {"source": str(pictures), "images": 8, "seed": 0}
    rows = found["points"][1:]
    assert [row["kind"] for row in rows] == ["even", "solved"]
    assert all(row["macs_ratio"] <= 0.8 for row in rows)


def test_pictures_to_solve_on_are_apart(pictures):
    reported = find_pictures(str(pictures))
    apart = apart_from(reported, "x", Solving(images=8))
    assert sorted([*apart.numbers, *apart.reported]) == list(range(24)) and len(apart.numbers) == 8
    with pytest.raises(ConfigError, match="give --solve-images 6"):
        apart_from(reported, "x", Solving(images=13))
    with pytest.raises(ConfigError, match="are the pictures that are reported on"):
        apart_from(reported, "x", Solving(source=str(pictures)))


def test_pictures_to_solve_on_share_no_file_with_those_that_are_reported(tmp_path):
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", [one for one in samples(name, 4) if one[0].endswith("png")])
    some, other = str(tmp_path / "a.tar"), str(tmp_path / "b.tar")
    reported = find_pictures(str(tmp_path))
    with pytest.raises(ConfigError, match=f"some are the pictures that are reported on, {some} for instance"):
        apart_from(reported, "x", Solving(source=some, images=2))
    assert apart_from(find_pictures(some), "x", Solving(source=other, images=2)).numbers
    folder = tmp_path / "loose"
    for place in ("p.png", "in/q.png"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(dict(samples("c", 1))["c_000.png"])
    with pytest.raises(ConfigError, match="q.png for instance"):
        apart_from(find_pictures(str(folder)), "x", Solving(source=str(folder / "in"), images=1))
