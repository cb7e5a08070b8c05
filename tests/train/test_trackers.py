"""Trackers are told what metrics.jsonl holds, go on with the same run after a resume, get no secret, and harm
no run where they fail."""

import csv
import importlib.util
import json
import math
import time
from pathlib import Path
from threading import Event, Thread

import pytest

from pipeline.engine.connect import ALONE
from pipeline.errors import ConfigError
from pipeline.train import trackers
from pipeline.train.loop import train
from pipeline.train.setup import build_run
from pipeline.train.trackers import TRACKERS, Trackers, background
from pipeline.train.trackers.csv_file import CsvFile
from pipeline.train.trackers.tracker import FILE, TrackedRun, known_as
from pipeline.train.watchdog import Watchdog

PLANTED = "planted-secret-1234"
ONLINE = ("wandb", "mlflow", "trackio")


def needs(name):
    there = importlib.util.find_spec(name) is not None
    return pytest.param(name, marks=pytest.mark.skipif(not there, reason=f"{name} is not installed"))


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Everything stays on the disk, and a secret is in the environment."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MY_API_TOKEN", PLANTED)


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_table_has_all_figures_and_goes_on_after_a_resume(tiny_run, tmp_path):
    log = dict(trackers=["csv"], name="first", tags=["a", "b"], notes="why")
    run, table = tmp_path / "run", tmp_path / "run/metrics.csv"
    sections = dict(train=dict(steps=4, log_every=1, eval_every=2, save_every=2), log=log)
    train(tiny_run(**sections))
    whole = table.read_text()
    rows = list(csv.DictReader(whole.splitlines()))
    known = [{k: v for k, v in line.items() if v is not None} for line in lines(run)]
    assert [{k: float(v) for k, v in row.items() if v} for row in rows] == known
    train(tiny_run(**sections), resume=str(run / "checkpoints/step_00000002"))
    again = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["step"] for row in again] == [row["step"] for row in rows]
    saved = json.loads((run / "config.json").read_text())["log"]
    assert (saved["name"], saved["tags"], saved["notes"]) == ("first", ["a", "b"], "why")


def test_a_row_that_was_cut_off_is_no_row_and_new_columns_keep_all_others(tmp_path):
    table = tmp_path / "metrics.csv"
    table.write_bytes(b"step,loss\r\n1,0.5\r\n100,0.25\r\n12")
    tracker = CsvFile(TrackedRun(tmp_path, "p", "n", (), "", {}, step=110))
    tracker.write(120, {"loss": 0.125})
    tracker.write(130, {"loss": math.nan, "val/a": 1.0})
    tracker.write(140, {"val/a": 2.0})
    lines = table.read_text().splitlines()
    assert lines == ["step,loss,val/a", "1,0.5,", "100,0.25,", "120,0.125,", "130,,1.0", "140,,2.0"]


def test_name_tags_and_notes_may_change_when_a_run_goes_on(tiny_run):
    sections = dict(train=dict(steps=4, save_every=2))
    train(tiny_run(**sections, log=dict(trackers=[], name="a")))
    train(tiny_run(**sections, log=dict(trackers=["csv"], name="b", notes="more")))


@pytest.mark.parametrize("name", [needs(name) for name in ONLINE])
def test_a_real_tracker_is_told_and_the_run_goes_on_as_the_same_one(
    tiny_run, tmp_path, offline, name, caplog
):
    log = dict(trackers=[name], project="p", tags=["x"], notes=f"MY_API_TOKEN={PLANTED}", pictures=1)
    sections = dict(train=dict(steps=4, log_every=2, save_every=2, eval_every=2), log=log)
    train(tiny_run(**sections))
    run = tmp_path / "run"
    known = json.loads((run / FILE).read_text())
    train(tiny_run(**sections), resume=str(run / "checkpoints/step_00000002"))
    assert known.keys() == {name} and json.loads((run / FILE).read_text()) == known
    assert "is told no more" not in caplog.text
    # config.json and checkpoints hold the notes as they were typed
    kept = {run / "config.json", *run.glob("checkpoints/**/*")}
    sent = [path for path in tmp_path.rglob("*") if path.is_file() and path not in kept]
    assert sent and not [path for path in sent if PLANTED.encode() in path.read_bytes()]
    told = {"wandb": of_wandb, "mlflow": of_mlflow, "trackio": of_trackio}[name]
    assert told(tmp_path, known[name])


def of_wandb(folder: Path, name: str) -> bool:
    """Both starts wrote a file of the same run, with a picture each."""
    files = list(folder.glob(f"run/wandb/offline-run-*/run-{name}.wandb"))
    pictures = list(folder.glob("run/wandb/offline-run-*/files/media/images/pictures/digits/*.png"))
    return bool(files) and len(pictures) >= 2


def of_mlflow(folder: Path, name: str) -> bool:
    from mlflow import MlflowClient

    client = MlflowClient()
    run = client.get_run(name)
    history = {metric.step: metric.value for metric in client.get_metric_history(name, "digits/loss")}
    own = {line["step"]: line["digits/loss"] for line in lines(folder / "run") if "digits/loss" in line}
    pictures = client.list_artifacts(name, "pictures/step_00000002")
    assert run.data.params["train.steps"] == "4" and run.data.tags["tags"] == "x"
    return history == own != {} and run.info.status == "FINISHED" and len(pictures) == 1


def of_trackio(folder: Path, name: str) -> bool:
    import sqlite3

    with sqlite3.connect(folder / "trackio/p.db") as base:
        rows = base.execute("select step from metrics where run_name = ?", (name,)).fetchall()
    return {2, 4} <= {step for (step,) in rows}


class Failing:
    """Fails at the second report."""

    def __init__(self, run: TrackedRun):
        self.told = 0

    def write(self, step, values):
        self.told += 1
        if self.told == 2:
            raise OSError(f"no route to https://user:{PLANTED}@host")

    def show(self, step, pictures): ...

    def close(self): ...


class Hanging(Failing):
    def write(self, step, values):
        time.sleep(3600)


@pytest.fixture
def of_mine(monkeypatch):
    for name, tracker in dict(failing=Failing, hanging=Hanging).items():
        monkeypatch.setitem(TRACKERS._factories, name, tracker)


def test_a_tracker_that_fails_is_said_once_and_ends_nothing(tiny_run, tmp_path, of_mine, caplog):
    train(tiny_run(train=dict(steps=4, log_every=1), log=dict(trackers=["failing", "csv"])))
    assert caplog.text.count("tracker 'failing' is told no more") == 1 and PLANTED not in caplog.text
    assert "OSError: no route to" in caplog.text
    assert len((tmp_path / "run/metrics.csv").read_text().splitlines()) == 1 + len(lines(tmp_path / "run"))


def test_a_tracker_that_hangs_holds_up_neither_reports_nor_the_end(tmp_path, of_mine, caplog, monkeypatch):
    monkeypatch.setattr(background, "CLOSES_WITHIN", 0.1)
    monkeypatch.setattr(background, "MOST_WAITING", 3)
    told = Trackers(TrackedRun(tmp_path, "p", "n", (), "", {}), ["hanging"])
    for step in range(10):
        told.write(step, {"loss": 1.0})
    told.close()
    assert caplog.text.count("tracker 'hanging' is told no more") == 1


def test_a_run_that_is_done_is_not_taken_for_a_hang_while_trackers_close(tiny_run, monkeypatch):
    """Whatever engine.timeout says."""
    at, there = [], []

    class Closing(Failing):
        def write(self, step, values): ...

        def close(self):
            there.append(at[-1])

    monkeypatch.setitem(TRACKERS._factories, "closing", Closing)
    monkeypatch.setattr(Watchdog, "at", lambda self, section: at.append(section))
    train(tiny_run(train=dict(steps=4), engine=dict(timeout=20.0), log=dict(trackers=["closing"])))
    (section,) = there
    assert section.limit == ALONE > len(TRACKERS.names()) * 2 * background.CLOSES_WITHIN


@pytest.mark.parametrize(
    "log, said",
    [
        (dict(trackers=["wandbb"]), "unknown tracker 'wandbb'; did you mean 'wandb'"),
        (dict(trackers=["csv", "csv"]), "names one twice"),
        (dict(trackers=["csv"], options=dict(csv=dict(path="x"))), "tracker 'csv': got an unexpected"),
        (dict(trackers=["csv"], options=dict(mlflow={})), "log.options has ['mlflow']"),
        (dict(pictures=-1), "log.pictures is -1; give 0 to 64"),
    ],
)
def test_a_wrong_setting_is_told_before_anything_is_made(tiny_run, tmp_path, log, said):
    with pytest.raises(ConfigError) as info:
        build_run(tiny_run(log=log), "auto")
    assert said in str(info.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ["[]", "{", '{"wandb": 3}', "[" * 100_000])
def test_a_strange_file_of_names_counts_as_none(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    run = TrackedRun(tmp_path, "p", "n", (), "", {})
    assert known_as(run, "wandb", lambda: "new") == "new" == known_as(run, "wandb", lambda: "other")


def test_names_of_several_trackers_are_all_kept(tmp_path):
    """Each has a thread, and a server may need long for a name."""
    run, begun, written = TrackedRun(tmp_path, "p", "n", (), "", {}), Event(), Event()

    def slow() -> str:
        begun.set()
        assert written.wait(60)
        return "of mlflow"

    thread = Thread(target=known_as, args=(run, "mlflow", slow))
    thread.start()
    assert begun.wait(60)
    known_as(run, "wandb", lambda: "of wandb")
    written.set()
    thread.join()
    assert json.loads((tmp_path / FILE).read_text()) == {"wandb": "of wandb", "mlflow": "of mlflow"}


def test_other_ranks_tell_nobody(tiny_run, tmp_path, monkeypatch):
    from pipeline.train import loop

    run = build_run(tiny_run(log=dict(trackers=["csv"])), "auto")
    with run.lock:
        monkeypatch.setattr(run.engine, "rank", 1)
        assert loop._trackers(run) is None and trackers.tracked(run.config, 0).name == "run"
