"""`dtem doctor --speed`: the verdict follows from the times, and what is said of an inference is so."""

import json
from statistics import median

import pytest
import torch
from torch.nn import functional as F

from launch import cli
from launch.bench.speed import even_reductions, verdict_lines
from launch.bench.verdict import Measured, verdicts
from launch.measure.watched import watched
from launch.predict.loaded import load_run
from launch.predict.models import RunModel
from pipeline.merging.schedule import check_schedule, resolve_schedule


@pytest.fixture
def speed(capsys):
    """Runs `dtem doctor --speed`, whose answer depends on the machine; what it printed."""

    def call(*argv: object) -> str:
        assert cli.main(["doctor", "--speed", *map(str, argv)]) in (0, 1), capsys.readouterr().err
        return capsys.readouterr().out

    return call


def rows(**speed_ups):
    """Reductions with these speed-ups in all rounds, and twice fewer MACs."""
    return [Measured(label, [value] * 4, 2.0) for label, value in speed_ups.items()]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (rows(a=0.9, b=1.2, c=1.6), "pays from b on; best c: 1.60x, 80% of the 2.00x fewer MACs"),
        (rows(a=1.1, b=0.9, c=1.6), "pays at a, c alone; best c"),
        (rows(a=1.3), "pays from a on; best a: 1.30x"),
    ],
)
def test_it_says_from_which_reduction_on_merging_pays(found, said):
    assert said in verdicts({8: found}, compiled=False)[8]


def test_where_it_does_not_pay_the_way_out_is_named():
    found = {1: rows(a=0.8, b=0.95), 8: rows(a=1.1), 64: rows(a=1.5)}
    alone = verdicts(found, compiled=False)[1]
    assert alone.startswith("1 image at once: does not pay; the best, b, is 0.95x as fast")
    assert alone.endswith("Try --compile model or a batch of 8, where it does")
    assert verdicts({1: found[1]}, compiled=True)[1].endswith("Try a larger batch, model or image")


def test_three_quarters_of_the_rounds_have_to_be_faster():
    """A median above 1 alone may be a matter of chance."""
    assert Measured("a", [1.2, 1.2, 1.1, 1.05], 2.0).pays
    assert not Measured("a", [1.2, 1.2, 0.9, 0.8], 2.0).pays


@pytest.mark.parametrize(("depth", "patches"), [(12, 196), (3, 16), (24, 20), (6, 4)])
def test_the_usual_reductions_can_be_had_and_no_larger_one_can(depth, patches):
    found = list(even_reductions(depth, patches).values())
    removed = [sum(resolve_schedule(r, depth, 2 * patches, 0)) for r in found]
    assert removed == sorted(set(removed)) and removed[0] >= 1
    for reduction in found:
        check_schedule(reduction, depth, patches, 0)
    assert removed[-1] == (patches - 1) // depth * depth or removed[-1] == patches - 1 < depth


def test_the_kernel_of_attention_and_the_peak_of_memory_are_those_of_the_call():
    q = torch.randn(1, 2, 8, 16)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert watched(lambda: F.scaled_dot_product_attention(q, q, q)).attention == "math"
    assert watched(lambda: F.scaled_dot_product_attention(q, q, q)).attention == "fused (CPU)"
    mib = torch.zeros(2**18)

    def three_alive_and_then_one():
        kept = [mib + 1, mib + 2, mib + 3]
        kept.clear()
        return mib + 4

    seen = watched(three_alive_and_then_one)
    assert seen.peak == 3 * 2**20 and seen.attention == "none"
    weight, x = torch.zeros(512, 1024), torch.zeros(2, 8, 1024)
    seen = watched(lambda: F.linear(x, weight).view(-1).add_(mib.view(2, -1)[0, 0]))
    assert seen.peak == 4 * 2 * 8 * 512, "views of weights and inputs are no memory of the call"


def test_a_model_is_measured_and_all_is_written(speed, tmp_path):
    named = ("timm:test_vit", "--no-pretrained", "--img-size", 64, "--device", "cpu", "--rounds", 2)
    out = tmp_path / "speed.json"
    said = speed(*named, "--batch-sizes", "1,2", "--out", out)
    facts = json.loads(out.read_text())
    assert [own["batch"] for own in facts["speed"]] == [1, 1, 2, 2]
    ratios = [own["macs_ratio"] for own in facts["speed"][:2]]
    assert ratios == sorted(ratios) and ratios[0] > 1
    times = {(own["batch"], own["which"]): own["ms"] for own in facts["latencies"]}
    for own in facts["speed"]:
        pairs = zip(times[own["batch"], "unmerged"], times[own["batch"], own["reduction"]], strict=True)
        assert own["speed_up"] == pytest.approx(median(whole / part for whole, part in pairs))
    assert facts["policy"] == "tome" and facts["latencies"][0]["attention"] == "fused (CPU)"
    assert "attention: fused (CPU) unmerged" in said
    assert all(verdict in said for verdict in facts["verdicts"].values())


def test_a_run_and_a_config_are_measured_by_their_own_policy(trained, speed, tmp_path):
    how = ("--device", "cpu", "--rounds", 1, "--batch-sizes", 1, "--reduction", "2,(2,-1)", "--out")
    for model in (trained, trained / "config.json"):
        speed(model, *how, tmp_path / "out.json")
        facts = json.loads((tmp_path / "out.json").read_text())
        assert facts["policy"] == "dtem" and facts["task"] == "digits"
        assert {own["reduction"] for own in facts["speed"]} == {"2", "(2,-1)"}
        assert facts["schedules"]["2"] == [2, 2, 2] and facts["schedules"]["(2,-1)"] == [4, 2, 0]
    assert "weights drawn" in facts["model"]


def test_what_does_not_go_together_is_refused(trained, dtem):
    for option, value in (("--batch-sizes", "2"), ("--reduction", "2")):
        assert f"{option} goes with --speed MODEL" in dtem("doctor", option, value, code=2)
    assert "--speed names nothing" in dtem("doctor", "--speed", "", code=2)
    assert "looks at nothing else" in dtem("doctor", "--speed", trained, "--json", code=2)
    assert "--batch-sizes holds 0" in dtem("doctor", "--speed", trained, "--batch-sizes", "0", code=2)

    for reduction, told in (
        ("9", "removes 27 tokens"),
        ("2,0", "reduction 0 merges nothing"),
        ("auto:2", "give R, without 'auto:'"),
    ):
        assert told in dtem("doctor", "--speed", trained, "--reduction", reduction, code=2)


def test_a_model_of_few_patches_merges_in_its_first_blocks(speed):
    """Of 4 patches: all of its 6 blocks cannot remove one each."""
    named = ("timm:test_vit", "--no-pretrained", "--img-size", 32, "--device", "cpu", "--rounds", 1)
    said = speed(*named, "--batch-sizes", 1)
    assert all(f"r = 1 in {blocks}" in said for blocks in ("1 block ", "2 blocks", "3 blocks"))


def test_more_images_than_memory_holds_are_refused(trained, dtem):
    how = ("--batch-sizes", "1000000000000", "--device", "cpu")
    for command in (("doctor", "--speed", trained), ("bench", trained)):
        assert "do not fit into the memory of cpu" in dtem(*command, *how, code=2)


def test_where_no_merge_pays_no_reduction_is_advised():
    facts = {"verdicts": {"1": "a", "8": "b"}}
    facts["by_block"] = {"1": {"of": "r = 1", "schedule": [0, 0]}, "8": {"of": "r = 2", "schedule": [2, 0]}}
    _, none, _, some = verdict_lines(facts)
    assert none == "  of r = 1, the merge of no block pays (uncompiled)"
    assert some.endswith("--reduction '[2,0]'")


def test_what_pays_is_stated_in_an_export_and_in_scores_of_which_a_sweep_has_none(trained, dtem, tmp_path):
    auto = ("--task", "digits", "--reduction", "auto:2@1")
    said = dtem("export", trained, *auto, "--out", tmp_path / "out")
    card = json.loads((tmp_path / "out" / "model.json").read_text())
    schedule = card["merging"]["schedule"]
    assert set(schedule) <= {0, 2} and f"{schedule}" in said
    assert "is measured on a device" in dtem("sweep", trained, *auto, code=2)
    assert "none of auto, auto:R" in dtem(
        "export", trained, "--reduction", "auto:x", "--out", tmp_path, code=2
    )


def test_scores_under_auto_are_those_of_the_reduction_that_they_state(trained, dtem, tmp_path):
    """So that it can be repeated: what was measured stands in the result, as r of each block."""
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    dtem("evaluate", trained, "--task", "digits", "--reduction", "auto:2@1", "--out", first)
    measured = json.loads(first.read_text())
    schedule = measured["schedule"]["digits"]
    assert set(schedule) <= {0, 2} and measured["measured"]["images"] == 1
    dtem("evaluate", trained, "--task", "digits", "--reduction", json.dumps(schedule), "--out", second)
    repeated = json.loads(second.read_text())
    assert repeated["scores"] == measured["scores"] and "measured" not in repeated


def test_a_loaded_run_measures_once_and_predicts_under_what_pays(trained):
    run = load_run(trained, reduction="auto:2@1", device="cpu")
    images = torch.rand(2, 3, 28, 28)
    found = run.predict(images, task="digits", groups=True)
    assert isinstance(run.predicting, RunModel)
    schedule = run.predicting.measured["digits"]
    assert set(schedule) <= {0, 2}
    stated = load_run(trained, reduction=schedule, device="cpu")
    for one, other in zip(found, stated.predict(images, task="digits", groups=True), strict=True):
        assert one.groups.num_tokens == other.groups.num_tokens and one.labels == other.labels
