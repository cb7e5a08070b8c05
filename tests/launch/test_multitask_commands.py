"""The commands on a run of three tasks that read the same images."""

import html
import json
import math
from dataclasses import replace
from itertools import islice

import pytest
import torch
from choices import clear_rows
from damage import damaged
from safetensors.torch import load_file

from launch.exported.formats import Program, fold_embeddings
from launch.measure.compute import first_batch
from launch.measure.evaluator import evaluator_of
from launch.measure.planning import Aims
from launch.measure.setups import variants_of
from launch.measure.sweep import sweep
from launch.saved.run import build, read_run
from pipeline.backbone.adapters.public import load_adapter
from pipeline.backbone.metric import EMBEDDINGS
from pipeline.backbone.weights.load import load_weights
from pipeline.config.schema import BalancingConfig
from pipeline.data.stream import build_eval_loader
from pipeline.errors import ConfigError
from pipeline.merging.unmerge import slots
from pipeline.model import build_model
from pipeline.train.evaluate import evaluate

TASKS = {"digits": "top1", "captions": "CIDEr", "masks": "mIoU"}
SCHEDULES = {"digits": [2, 2, 2], "captions": [2, 2, 2], "masks": [1, 1, 1]}
POLICIES = ["tome", "dtem_untrained", "dtem"]


@pytest.fixture(params=EMBEDDINGS)
def run(request, three_tasks):
    return read_run(three_tasks(request.param))


GENERATED = tuple(f"val/captions/{metric}" for metric in ("BLEU", "ROUGE", "CIDEr", "METEOR", "PTB"))


def result_of(dtem, tmp_path, *argv) -> dict:
    dtem("evaluate", *argv, "--out", tmp_path / "scores.json")
    return json.loads((tmp_path / "scores.json").read_text())


def test_every_task_scores_what_training_said_at_its_own_reduction(run, dtem, tmp_path):
    lines = [json.loads(line) for line in (run.root / "metrics.jsonl").read_text().splitlines()]
    said = {name: value for line in lines for name, value in line.items() if name.startswith("val/")}
    result = result_of(dtem, tmp_path, run.root)
    found = {
        f"val/{task}/{name}": value
        for task, values in result["scores"].items()
        for name, value in values.items()
    }
    # which words are generated is a chain of choices, which rounding may change
    held = {name: value for name, value in said.items() if not name.startswith(GENERATED)}
    assert {"val/captions/loss", "val/digits/top1", "val/masks/mIoU"} <= held.keys()
    assert {name: found[name] for name in held} == pytest.approx(held)
    assert result["schedule"] == SCHEDULES


def test_checkpoints_are_ranked_by_the_geometric_mean_of_the_main_metrics(three_tasks, dtem, tmp_path):
    run = read_run(three_tasks("per_task"))  # after whose few steps no metric is 0
    said = dtem("evaluate", run.root, "--out", tmp_path / "scores.json")
    result = json.loads((tmp_path / "scores.json").read_text())
    assert result["ranking"]["main_metrics"] == TASKS and result["ranking"]["score"] > 0
    values = [result["scores"][task][metric] for task, metric in TASKS.items()]
    assert (
        result["ranking"]["score"]
        == pytest.approx(math.prod(values) ** (1 / 3))
        == pytest.approx(run.facts["progress"]["best"])
    )
    top1, cider, miou = 100 * values[0], values[1], 100 * values[2]
    assert f"of digits top1 {top1:.2f} %, captions CIDEr {cider:.6g}, masks mIoU {miou:.2f} %: " in said


def test_some_tasks_are_evaluated_alone_and_rank_nothing(three_tasks, dtem, tmp_path):
    said = dtem(
        "evaluate", three_tasks("shared"), "--task", "masks,digits", "--out", tmp_path / "scores.json"
    )
    result = json.loads((tmp_path / "scores.json").read_text())
    assert (
        list(result["scores"]) == ["digits", "masks"]
        and result["ranking"]["score"] is None
        and "ranked" not in said
    )
    for command in ("evaluate", "sweep"):
        assert "no task 'cats'; it has digits, captions, masks" in dtem(
            command, three_tasks("shared"), "--task", "masks,cats", code=2
        )


def test_checkpoints_may_be_ranked_by_one_task(three_tasks, dtem, tmp_path):
    argv = [three_tasks("shared"), "--cfg-options", "train.best=digits"]
    said, result = dtem("evaluate", *argv), result_of(dtem, tmp_path, *argv)
    top1 = result["scores"]["digits"]["top1"]
    assert result["ranking"]["score"] == top1 and f"ranked by digits top1 {100 * top1:.2f} %\n" in said


def test_another_policy_starts_unmerged_for_all_tasks(three_tasks, dtem, tmp_path):
    for policy in ("none", "tome"):
        result = result_of(
            dtem, tmp_path, three_tasks("per_task"), "--policy", policy, "--task", "digits,masks"
        )
        assert result["schedule"] == {"digits": [0, 0, 0], "masks": [0, 0, 0]}


def test_a_sweep_scores_each_task_as_it_is_alone(run):
    """With the embedding that is the task's, whatever the policy."""
    results = sweep([run], POLICIES, Aims([3]), rounds=0)
    assert [result.task for result in results] == list(TASKS) and [
        result.metric for result in results
    ] == list(TASKS.values())
    for result in results:
        loader = build_eval_loader(result.task, run.config.tasks[result.task].data, rank=0, world_size=1)
        for point in (result.whole, *result.points):
            model = build(run, point.policy)
            alone = evaluate(evaluator_of(model), {result.task: loader}, reduction=point.target)[result.task]
            assert point.schedule == (point.target,) * 3
            assert {name: values[0] for name, values in point.scores.items()} == pytest.approx(
                {k: alone[k] for k in point.scores}
            )


def test_the_sweep_of_several_tasks_has_a_table_and_a_plot_of_each_and_one_figure_of_all(
    three_tasks, dtem, tmp_path
):
    argv = [
        "sweep",
        three_tasks("adapter"),
        "--policy",
        "tome,dtem",
        "--reduction",
        "2",
        "--rounds",
        "0",
        "--out",
    ]
    said = dtem(*argv, tmp_path / "all")
    assert all(f"\n{task}: 25 samples" in said for task in TASKS)
    pngs = {
        "sweep.png",
        *(f"sweep_{task}.png" for task in TASKS),
        *(f"sweep_{task}_encoder.png" for task in ("captions", "masks")),
    }
    assert {path.name for path in (tmp_path / "all").glob("*.png")} == pngs
    joint = (tmp_path / "all/sweep.svg").read_text()
    assert all(f">{task}<" in joint or f">{task}: " in joint for task in TASKS)
    assert joint.count(">DTEM<") == 3
    dtem(*argv, tmp_path / "one", "--task", "masks")
    assert {path.name for path in (tmp_path / "one").glob("*.png")} == {
        "sweep_masks.png",
        "sweep_masks_encoder.png",
    }


def test_seeds_that_differ_in_what_weighed_their_losses_are_one_model(three_tasks):
    run = read_run(three_tasks("per_task"))
    run = replace(run, config=replace(run.config, balancing=BalancingConfig(type="gradient_norm")))
    first, other = (
        replace(run, tensors=run.tensors | {f"balancing.{name}": weights for name in ("weights", "first")})
        for weights in (torch.ones(3), torch.zeros(3))
    )
    found = variants_of(POLICIES, [first, other], torch.device("cpu"))
    assert [len(found[policy]) for policy in POLICIES] == [1, 2, 2]


def test_runs_whose_embeddings_are_shared_otherwise_are_not_mixed(three_tasks):
    runs = [read_run(three_tasks(kind)) for kind in ("shared", "adapter")]
    with pytest.raises(ConfigError, match="what their embeddings share"):
        sweep(runs, ["tome"], Aims([2]), rounds=0)


def test_tasks_with_the_same_images_share_their_rows(run, dtem, tmp_path):
    dtem("visualise", run.root, "--num", 2, "--blocks", "1,3", "--out", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"tasks_dtem.png", "tasks_dtem.html"}
    page = (tmp_path / "tasks_dtem.html").read_text()
    # predictions, their errors and the reference; groups, as masks has its own r
    assert page.count("<article") == 2 and page.count("<img") == 2 * (1 + 5 + 3 * 2)
    for task in TASKS:
        assert page.count(f"<h4>{task}</h4>") == page.count(f"<h4>merged groups, {task}</h4>") == 2
    assert "<h2>2 images</h2>" in page
    batches = {
        task: first_batch(task, replace(run.config.tasks[task].data, eval_batch_size=2)).to("cpu")
        for task in TASKS
    }
    model = build(run)
    for reduction, said in ((0, "unmerged"), (None, "merged")):
        shares = (
            model.tasks["digits"].infer(model.encoder("digits", reduction), batches["digits"]).softmax(-1)
        )
        loader = build_eval_loader("digits", run.config.tasks["digits"].data, rank=0, world_size=1)
        classes = loader.classes
        names = [classes[i] for i in shares.argmax(-1)]
        made = model.tasks["captions"].infer(model.encoder("captions", reduction), batches["captions"])
        for name, share, label in zip(
            names, shares.amax(-1).tolist(), batches["digits"].targets.labels.tolist(), strict=True
        ):
            mark = "right" if name == classes[label] else "wrong"
            answer = f"{mark}: </span>{name} {100 * share:.0f} %</span></b><small>{said}</small>"
            assert answer in page and f"<p>true: {classes[label]}</p>" in page
        assert all(f"<b>{html.escape(text)}</b><small>{said}</small>" in page for text in made)
    assert all(f"<li>{text}</li>" in page for own in batches["captions"].targets.references for text in own)


def test_a_sample_that_one_task_cannot_read_is_left_out_of_the_page_and_does_not_shift_the_others(
    three_tasks, digits, dtem, tmp_path
):
    shards = damaged(
        digits, tmp_path / "shards", {("val-00000.tar", 0): "json", ("val-00000.tar", 2): "seg.png"}
    )
    changes = [f"tasks.{task}.data.val={shards}" for task in TASKS]
    run = three_tasks("shared")
    dtem("visualise", run, "--num", 3, "--blocks", "3", "--out", tmp_path / "page", "--cfg-options", *changes)
    page = (tmp_path / "page" / "tasks_dtem.html").read_text()
    (batch,) = islice(
        build_eval_loader("captions", read_run(run).config.tasks["captions"].data, rank=0, world_size=1), 1
    )
    shown = [all(f"<li>{text}</li>" in page for text in texts) for texts in batch.targets.references]
    assert page.count("<article") == 3 and shown == [False, True, False, True, True]


def test_groups_that_are_alike_for_all_tasks_are_drawn_once(three_tasks, dtem, tmp_path):
    pages = {}
    for kind in ("shared", "per_task"):
        dtem(
            "visualise",
            three_tasks(kind),
            "--num",
            3,
            "--reduction",
            "3",
            "--blocks",
            "3",
            "--out",
            tmp_path,
        )
        pages[kind] = (tmp_path / "tasks_dtem.html").read_text()
    assert pages["shared"].count("<img") == 3 * (1 + 5 + 1)
    assert pages["shared"].count("<h4>merged groups, alike for all tasks</h4>") == 3
    assert pages["per_task"].count("<img") == 3 * (1 + 5 + 3) and "alike" not in pages["per_task"]


def test_tasks_with_other_images_have_rows_of_their_own(three_tasks, scenes, dtem, tmp_path):
    argv = [three_tasks("shared"), "--num", 2, "--reduction", "1", "--blocks", "3", "--out", tmp_path]
    dtem("visualise", *argv, "--cfg-options", f"tasks.masks.data.val={scenes}")
    page = (tmp_path / "tasks_dtem.html").read_text()
    assert [part.partition("</h2>")[0] for part in page.split("<h2>")[1:]] == ["digits, captions", "masks"]
    assert page.count("<article") == 4 and page.count("<img") == 2 * (1 + 1) + 2 * (1 + 5 + 1)
    assert (tmp_path / "tasks_dtem.png").read_bytes().startswith(b"\x89PNG")
    dtem("visualise", *argv, "--task", "masks")
    assert "</i>ground" in (tmp_path / "groups_masks_dtem.html").read_text()
    assert "give 1 image or more" in dtem("visualise", *argv, "--num", "0", code=2)


def single(run, task):
    """The task alone, with a shared embedding, as anyone would build it."""
    asked = run.config.tasks[task].merging or run.config.merging
    merging = replace(run.config.merging, reduction=asked.reduction, embedding="shared")
    return build_model(
        replace(run.config, merging=merging, tasks={task: replace(run.config.tasks[task], merging=None)})
    ).eval()


@pytest.mark.parametrize("task", TASKS)
def test_an_exported_task_alone_merges_and_predicts_as_among_the_others(run, task, dtem, tmp_path):
    dtem("export", run.root, "--task", task, "--out", tmp_path)
    weights, card = (
        load_file(tmp_path / "model.safetensors"),
        json.loads((tmp_path / "model.json").read_text()),
    )
    among, alone = build(run), single(run, task)
    report = load_weights(alone, weights)
    assert not report.left and not report.missing
    assert {name for name in weights if ".metric." in name} == {
        f"blocks.{i}.metric.{part}" for i in range(3) for part in ("weight", "bias")
    }
    assert card["task"] == task and card["merging"]["schedule"] == SCHEDULES[task]
    batch = first_batch(task, run.config.tasks[task].data).to("cpu")
    with torch.no_grad():
        theirs, ours = (model.predict(batch, relaxed=False) for model in (among, alone))
        torch.testing.assert_close(ours.predictions, theirs.predictions, atol=1e-5, rtol=1e-5)
        states = [
            model.encode(task, batch.images, relaxed=False, unmerge=None).final for model in (among, alone)
        ]
    assert torch.equal(slots(states[0]), slots(states[1])) and states[0].tokens.shape[1] == 17 - sum(
        SCHEDULES[task]
    )


def test_the_exported_embedding_is_the_tasks_own(run, dtem, tmp_path):
    files = {}
    for task in TASKS:
        dtem("export", run.root, "--task", task, "--out", tmp_path)
        files[task] = load_file(tmp_path / "model.safetensors")
        dtem("export", run.root, "--task", task, "--out", tmp_path / task, "--adapter")
        adapter = load_adapter(tmp_path / task)
        assert all(torch.equal(value, files[task][name]) for name, value in adapter.tensors.items())
        assert adapter.config.merging.reduction == max(SCHEDULES[task])
    blocks = build(run).backbone.blocks
    for i, block in enumerate(blocks):
        for task, weights in files.items():
            folded = block.metric.fold(task)
            assert all(torch.equal(weights[f"blocks.{i}.metric.{part}"], folded[part]) for part in folded)
        alike = torch.equal(*(files[task][f"blocks.{i}.metric.weight"] for task in ("digits", "masks")))
        assert alike == (run.config.merging.embedding == "shared")


@pytest.mark.parametrize("task", ["digits", "masks"])
def test_what_a_program_is_made_of_gives_a_tasks_logits_and_holds_nothing_of_the_others(run, task):
    eager, model = Program(build(run), task), build(run)
    fold_embeddings(model, task)
    folded = Program(model, task)
    images = clear_rows(eager, torch.randn(60, 3, 32, 32), 3)
    with torch.no_grad():
        torch.testing.assert_close(folded(images), eager(images))
    others = set(TASKS) - {task}
    assert not [name for name in folded.state_dict() if any(other in name for other in others)]


# folded, all kinds are the same program
@pytest.mark.parametrize(
    "run, task",
    [
        pytest.param(kind, task, marks=[] if (kind, task) == ("adapter", "masks") else pytest.mark.slow)
        for kind in EMBEDDINGS
        for task in ("digits", "masks")
    ],
    indirect=["run"],
)
def test_a_program_of_one_task_gives_its_logits_and_holds_nothing_of_the_others(run, task, dtem, tmp_path):
    dtem("export", run.root, "--task", task, "--out", tmp_path, "--format", "pt2")
    program, eager = torch.export.load(tmp_path / "model.pt2"), Program(build(run), task)
    images = clear_rows(eager, torch.randn(60, 3, 32, 32), 3)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), eager(images))
    others = set(TASKS) - {task}
    assert not [name for name in program.state_dict if any(other in name for other in others)]


def test_a_task_has_to_be_named_where_there_are_several(three_tasks, dtem, tmp_path):
    assert "give --task, one of digits, captions, masks" in dtem(
        "export", three_tasks("shared"), "--out", tmp_path, code=2
    )
    assert "not a function from images to logits" in dtem(
        "export", three_tasks("shared"), "--task", "captions", "--format", "pt2", "--out", tmp_path, code=2
    )
