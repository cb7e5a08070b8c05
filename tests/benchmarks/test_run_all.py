"""`make bench`: every script has its row, every row's words are those of its script, and one failure stops
nothing."""

import argparse
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import peer_paths
import pytest
import run_all
from claims import SHORT_SECONDS, TABLE
from gpu_claims import GPU, SECONDS
from record import OF_A_DAY
from rows import WORK, Row

BENCHMARKS = Path(run_all.__file__).parent
SCRIPTS = sorted(
    path.name
    for path in BENCHMARKS.glob("*.py")
    if "__main__" in path.read_text() and path.name != "run_all.py" and not path.stem.endswith("_table")
)
RECORDS = sorted(
    {
        "gpu" if OF_A_DAY.fullmatch(path.name) else path.stem
        for path in (BENCHMARKS / "records").glob("*.json")
    }
)
PEERS = {name: str(BENCHMARKS) for name in peer_paths.PEERS}


class Parsed(Exception):
    pass


@pytest.fixture
def words_of(monkeypatch) -> Callable[..., argparse.Namespace]:
    """A script's words as it reads them, and nothing of what it would do then."""
    read: list[argparse.Namespace] = []
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser, *arguments):
        read.append(parse(parser, *arguments))
        raise Parsed

    def words(script: str, *arguments: str) -> argparse.Namespace:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(Parsed):
            runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
        return read.pop()

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    return words


def test_every_script_and_every_record_has_its_row():
    assert sorted({row.script for row in TABLE}) == SCRIPTS
    assert len({row.name for row in TABLE}) == len(TABLE)
    assert set(RECORDS) <= {row.into or row.name for row in TABLE}


@pytest.mark.parametrize("short", [True, False], ids=["short", "for the record"])
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_row_has_the_words_of_its_script(words_of, row, short):
    _, _, *arguments = row.command(Path("runs/bench/x"), Path(f"a/{row.name}.json"), short=short, peers=PEERS)
    words = words_of(row.script, *arguments)
    assert Path(words.record) == Path(f"a/{row.name}.json")
    assert getattr(words, "peer", {}) == {peer: PEERS[peer] for peer in row.peers}
    assert not any(WORK in word for word in arguments)


@pytest.mark.parametrize("script", [*SCRIPTS, "run_all.py"])
def test_a_script_tells_its_arguments(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
    told = capsys.readouterr().out
    assert done.value.code == 0 and "--record" in told
    assert max(map(len, told.splitlines())) <= 140, "a backslash in a docstring joins lines"


@pytest.fixture
def house(tmp_path, monkeypatch) -> Path:
    """A repository with two scripts: one writes what it was told to its record, the other fails."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/writes.py").write_text(
        "import os, sys\nos.makedirs(os.path.dirname(sys.argv[-1]))\nopen(sys.argv[-1], 'w').write(' "
        "'.join(sys.argv[1:-2]))\n"
    )
    (tmp_path / "benchmarks/fails.py").write_text("raise SystemExit(3)\n")
    monkeypatch.setattr(run_all, "ROOT", tmp_path)
    return tmp_path


def test_what_fails_or_lacks_something_stops_nothing_and_is_named(house, capsys):
    rows = [
        Row("broken", "fails.py"),
        Row("peerless", "writes.py", "--long 9", "--long 1", needs=("tome",), peers=("tome",)),
        Row("dataless", "writes.py", f"--train data/birds --work {WORK}/dataless", needs=("birds",)),
        Row("fine", "writes.py", f"--long 9 --work {WORK}/fine", "--long 1"),
    ]
    work = Path("runs/bench/x")
    assert run_all.run_all(rows, work, work / "records", short=True, peers={}) == 1
    *_, broken, peerless, dataless, fine = capsys.readouterr().out.splitlines()
    assert "FAILED" in broken and "done" in fine
    assert "--peer tome=PATH" in peerless
    assert peerless.endswith(
        "python benchmarks/writes.py --long 9 --peer tome=PATH --record benchmarks/records/peerless.json"
    )
    assert "data/birds" in dataless and "--work runs/dataless" in dataless
    assert (house / work / "records/fine.json").read_text() == "--long 9 --work runs/bench/x/fine --long 1"
    assert not (house / "benchmarks/records").exists()


def test_all_well_is_said_by_the_exit_status(house):
    assert (
        run_all.run_all(
            [Row("fine", "writes.py")], Path("runs/x"), Path("runs/x/records"), short=True, peers={}
        )
        == 0
    )


def test_data_that_can_be_made_is_no_lack(house):
    row = Row("digits", "writes.py", needs=("digits",))
    assert run_all.lacking(row, {}) == ""
    [[_, *made]] = run_all.preparation(row)
    assert made == run_all.MADE["digits"]
    (house / "data/digits").mkdir(parents=True)
    (house / "data/digits/manifest.json").write_text("{}")
    assert run_all.preparation(row) == []


def test_make_bench_is_this_table():
    told = subprocess.run(
        ["make", "--dry-run", "bench"], cwd=BENCHMARKS.parent, capture_output=True, text=True, check=True
    )
    assert "benchmarks/run_all.py" in told.stdout


def test_what_takes_too_long_is_ended_and_stops_nothing(house, capsys):
    (house / "benchmarks/waits.py").write_text("import time\ntime.sleep(600)\n")
    rows = [Row("waits", "waits.py", limit=0.5), Row("fine", "writes.py")]
    assert run_all.run_all(rows, Path("runs/x"), Path("runs/x/records"), short=False, peers={}) == 1
    *_, waits, fine = capsys.readouterr().out.splitlines()
    assert "FAILED" in waits and "done" in fine


@pytest.mark.parametrize("short", [True, False])
def test_a_row_for_which_no_time_is_left_is_named(house, capsys, short):
    (house / "benchmarks/waits.py").write_text("import time\ntime.sleep(600)\n")
    rows = [Row("waits", "waits.py", limit=500), Row("late", "writes.py", limit=500)]
    work = Path("runs/x")
    assert run_all.run_all(rows, work, work / "records", short=short, peers={}, seconds=0.5) == 1
    *_, waits, late = capsys.readouterr().out.splitlines()
    assert "FAILED" in waits and "late: no time is left; then: python benchmarks/writes.py" in late
    assert not (house / work).exists()


def test_a_package_that_is_not_installed_is_named():
    row = Row("captions", "writes.py", needs=("package no_such_package",))
    assert run_all.lacking(row, {}) == "the package no_such_package is not installed"
    assert not run_all.lacking(Row("arrays", "writes.py", needs=("package numpy",)), {})


def test_the_rows_of_a_gpu_end_within_nine_minutes_and_short_runs_within_fifteen():
    assert SHORT_SECONDS < 15 * 60
    assert SECONDS < 9 * 60 and all(row.limit for row in GPU)
    assert all(row in TABLE and row.needs[0] == "cuda" and row.into == "gpu" for row in GPU)


def test_a_peer_is_a_path_that_is_there(capsys):
    parser = argparse.ArgumentParser()
    peer_paths.add_peers(parser)
    here = str(BENCHMARKS)
    assert parser.parse_args([]).peer == {}
    given = parser.parse_args(["--peer", f"dtem={here}", "--peer", f"tome={here}"]).peer
    assert given == {"dtem": here, "tome": here} and parser.parse_args([]).peer == {}
    for wrong, said in ((f"vit={here}", "peers are"), (f"dtem={here}/nowhere", "there is no")):
        with pytest.raises(SystemExit):
            parser.parse_args(["--peer", wrong])
        assert said in capsys.readouterr().err
