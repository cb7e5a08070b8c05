"""What a run says while it trains: time left, waits for data, norms by what learns, pictures, how it was
started."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ConfigError
from pipeline.parts import METRIC
from pipeline.train.kind_norms import GRADIENT_NORMS
from pipeline.train.loop import train
from pipeline.train.metrics import MetricSums, mean
from pipeline.train.reporting import Reporter, Stopwatch, duration
from pipeline.train.setup import build_run
from pipeline.train.train_step import train_step
from pipeline.train.waiting import DataWait


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "seconds, said",
    [(3, "3 s"), (99.4, "99 s"), (720, "12 min"), (11_100, "3 h 05 min"), (187_200, "2 d 4 h")],
)
def test_time_is_said_as_people_do(seconds, said):
    assert duration(seconds) == said


def test_a_line_has_units_and_the_time_left(tmp_path, capsys):
    with Reporter(tmp_path, main=True, step=0, total_steps=9, units={"val/a/top1": "%"}) as reporter:
        reporter.write(
            3, {"val/a/top1": 0.3333, "data_wait": 0.166, "samples_per_s": 341.0}, seconds_left=720
        )
    said = capsys.readouterr().err
    assert "step 3/9  12 min left" in said and "samples_per_s 341 samples/s" in said
    assert "data_wait 16.6 %" in said and "top1 33.33 %" in said
    assert lines(tmp_path) == [{"step": 3, "val/a/top1": 0.3333, "data_wait": 0.166, "samples_per_s": 341.0}]


def test_waiting_for_data_is_said_once_with_the_way_out(tiny_run):
    waits = DataWait(tiny_run(data=dict(train="https://host/set")))
    assert [waits.word(share) for share in (0.9, 0.1, 0.9)] == [None, None, None]
    said = waits.word(0.43)
    assert said is not None and "43 % of the time is spent waiting for data" in said
    assert "tasks.digits.data.workers, now 0" in said and "data.cache_dir" in said
    assert waits.word(0.9) is None


def test_norms_stand_by_what_learns_where_a_run_alternates(tiny_run, tmp_path):
    train(tiny_run(train=dict(mode="end_to_end", alternate_period=2, steps=4, log_every=1)))
    found = [line for line in lines(tmp_path / "run") if "lr" in line]
    kinds = [("grad_norm_embeddings" in line, "grad_norm_model" in line) for line in found]
    assert not any("grad_norm" in line for line in found)
    assert set(kinds) == {(True, False), (False, True)}, "each report is of one step here"
    assert all(value > 0 for line in found for name, value in line.items() if name in GRADIENT_NORMS)


def test_pictures_of_an_evaluation_say_in_words_what_they_show(tiny_run, tmp_path):
    log = dict(pictures=2, trackers=["csv"])
    run = train(tiny_run(train=dict(steps=4, eval_every=2), log=log))
    assert sorted(path.name for path in (run / "pictures").iterdir()) == ["step_00000002", "step_00000004"]
    folder = run / "pictures/step_00000004"
    told = json.loads((folder / "pictures.json").read_text())
    assert [own["file"] for own in told] == ["digits_0.png", "digits_1.png"]
    assert told[0]["key"] != told[1]["key"]
    for own in told:
        with Image.open(folder / own["file"]) as image:
            assert image.width > 3 * image.height and len(np.unique(np.asarray(image))) > 2
        assert own["words"][0].startswith("from the left: image") and "true: " in own["words"][-1]


def test_a_run_that_is_to_fit_a_few_samples_draws_these(tiny_run, tmp_path):
    """And so without a set to evaluate on."""
    data = dict(overfit=3, val=None, batch_size=3)
    run = train(tiny_run(train=dict(steps=3, eval_every=3), data=data, log=dict(pictures=4, trackers=[])))
    told = json.loads((run / "pictures/step_00000003/pictures.json").read_text())
    (stream,) = build_run(tiny_run(data=data, train=dict(steps=3)), "auto").streams.values()
    assert sorted(own["key"] for own in told) == sorted(next(iter(stream)).keys)


def test_pictures_do_not_change_what_is_learned(tiny_run, tmp_path):
    sections = dict(train=dict(steps=4, eval_every=2))
    plain = train(tiny_run(tmp_path / "plain", **sections))
    drawn = train(tiny_run(tmp_path / "drawn", **sections, log=dict(pictures=1, trackers=[])))
    without = [[line.get("digits/loss"), line.get("val/digits/loss")] for line in lines(plain)]
    assert [[line.get("digits/loss"), line.get("val/digits/loss")] for line in lines(drawn)] == without


def test_each_start_is_noted_without_secrets(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dtem", "train", "x.py", "--set", "MY_API_TOKEN=planted-secret"])
    config = tiny_run(train=dict(steps=4, save_every=2))
    train(config)
    train(config, resume=str(tmp_path / "run/checkpoints/step_00000002"))
    starts = [json.loads(line) for line in (tmp_path / "run/starts.jsonl").read_text().splitlines()]
    assert [start["step"] for start in starts] == [0, 2]
    assert starts[0]["command"].startswith("dtem train x.py --set") and "planted" not in str(starts)
    assert starts[0]["versions"]["torch"] and starts[0]["about"][0].startswith("device: ")


def test_a_wrong_number_of_pictures_makes_nothing(tiny_run, tmp_path):
    with pytest.raises(ConfigError, match="log.pictures is 65"):
        build_run(tiny_run(log=dict(pictures=65)), "auto")


def test_norms_stand_by_kind_where_one_step_trains_both(tiny_run, tmp_path):
    """Those of the gradients that the engine holds, in the steps that are reported."""
    config = tiny_run(train=dict(mode="joint", steps=4, log_every=2), optim=dict(clip_grad=None))
    run, wanted = build_run(config, "none"), []
    step = run.engine.step

    def noted(rates):
        kinds = {METRIC: 0.0, "others": 0.0}
        for group in run.groups:
            own = METRIC if group["kind"] == METRIC else "others"
            kinds[own] += sum(float(each.grad.square().sum()) for each in group["params"])
        wanted.append((kinds[METRIC] ** 0.5, kinds["others"] ** 0.5))
        return step(rates)

    run.engine.step = noted
    streams = {name: iter(stream) for name, stream in run.streams.items()}
    for number in range(4):
        sums = MetricSums()
        norm = train_step(run, ["digits"], streams, sums, Stopwatch())
        found = {name: mean(pair) for name, pair in sums.reduce(run.engine).items() if name in GRADIENT_NORMS}
        assert len(found) == (2 if number % 2 else 0)
        if found:
            assert [found[name] for name in GRADIENT_NORMS] == pytest.approx(wanted[-1], rel=1e-4)
            assert float(norm) ** 2 == pytest.approx(sum(value**2 for value in found.values()), rel=1e-4)
    run.lock.__exit__(None, None, None)
