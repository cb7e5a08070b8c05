"""The doctor's findings: each lack has a way out, and only what is needed fails the command."""

import json
import os
import time

import pytest
from packaging.specifiers import SpecifierSet

from launch import cli
from launch.checks import machine, packages
from launch.checks.finding import Finding
from launch.commands import doctor
from launch.configs.needs import needed_extras
from pipeline.extras import command


@pytest.fixture(scope="module")
def findings():
    checks = [check for check in doctor.CHECKS if check is not packages.check_imports]  # those take 10 s
    return [finding for check in checks for finding in check()]


def test_every_lack_has_a_way_out(findings):
    assert all(finding.way_out for finding in findings if finding.status != "ok")
    assert {"python", "torch", "gpu", "g++", "memory", "/dev/shm", "java"} <= {
        f.name.split()[0] for f in findings
    }


def test_the_environment_of_the_tests_has_all_packages(findings):
    assert not [f for f in findings if f.status == "missing" and f.way_out.startswith("pip install")]


@pytest.mark.parametrize("status, code", [("ok", 0), ("warn", 0), ("missing", 1)])
def test_only_a_missing_need_fails(status, code, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CHECKS", (lambda: iter([Finding("x", status, "detail", "do y")]),))
    assert cli.main(["doctor", "--json"]) == code
    assert json.loads(capsys.readouterr().out) == [
        {"name": "x", "status": status, "detail": "detail", "way_out": "do y"}
    ]
    assert cli.main(["doctor"]) == code
    assert "-> do y" in capsys.readouterr().out


def test_a_check_whose_package_is_missing_is_a_finding(monkeypatch, capsys):
    def check_torch():
        import no_such_package

        yield no_such_package

    monkeypatch.setattr(doctor, "CHECKS", (check_torch,))
    assert cli.main(["doctor"]) == 1
    assert "No module named 'no_such_package'" in capsys.readouterr().out


def test_an_old_compiler_lock_is_found_and_a_fresh_one_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    for name, age in (("old", 3600), ("fresh", 1)):
        lock = tmp_path / name / "lock"
        lock.parent.mkdir()
        lock.touch()
        os.utime(lock, (time.time() - age,) * 2)
    found = [f.detail for f in machine.check_compiler() if f.name == "torch_extensions"]
    assert len(found) == 1 and str(tmp_path / "old" / "lock") in found[0]


def test_missing_shards_are_said(tmp_path):
    finding = doctor.check_shards(str(tmp_path / "nowhere"))
    assert finding.status == "missing" and "nowhere" in finding.detail


def test_two_families_of_one_package_are_said(monkeypatch):
    monkeypatch.setattr(packages, "_installed", lambda name: name in ("mmcv", "onedl-mmcv"))
    assert [f.detail for f in packages.check_mm_families()] == [
        "mmcv and onedl-mmcv overwrite each other's files"
    ]


@pytest.mark.slow
def test_the_fragile_packages_import():
    assert {f.status for f in packages.check_imports()} == {"ok"}


def test_what_a_config_needs(trained, dtem):
    said = dtem("doctor", "--config", trained)
    assert "tasks.digits.data.train: 80 samples in" in said and "nothing that is needed is missing" in said
    assert "checkpoints take" in said and "a rank takes about" in said


def test_data_that_are_not_there_are_missing(trained, capsys):
    words = ["--set", "tasks.digits.data.val=/nowhere", "--json"]
    assert cli.main(["doctor", "--config", str(trained), *words]) == 1
    found = [one for one in json.loads(capsys.readouterr().out) if one["status"] == "missing"]
    assert [one["name"] for one in found] == ["data"]
    assert found[0]["detail"].count("tasks.digits.data.val") == 1


def test_a_disk_that_is_too_small_for_the_checkpoints(trained, capsys):
    assert cli.main(["doctor", "--config", str(trained), "--set", "train.keep_checkpoints=1000000000"]) == 1
    said = capsys.readouterr().out
    assert "missing disk" in said and "lower train.keep_checkpoints" in said


def test_what_cannot_start_is_a_finding(trained, dtem, capsys):
    assert cli.main(["doctor", "--config", str(trained), "--set", "merging.reduction=40"]) == 1
    assert "missing config" in capsys.readouterr().out
    assert "--set goes with --config" in dtem("doctor", "--set", "optim.lr=1", code=2)


def test_extras_follow_from_the_settings(tiny_run):
    log = dict(trackers=["csv", "wandb"], pictures=2)
    config = tiny_run(engine=dict(type="deepspeed"), log=log, data=dict(val=["s3://a/b", "hf_datasets:x"]))
    assert needed_extras(config) == {
        "deepspeed": "engine.type",
        "plots": "log.pictures",
        "trackers": "log.trackers, wandb",
        "s3": "tasks.digits.data.val",
        "datasets": "tasks.digits.data.val",
    }
    assert needed_extras(tiny_run()) == {}


def test_a_package_that_is_needed_and_not_there_is_missing():
    found = packages.found_package("no-such-package", SpecifierSet(">=1"), "s3", needed_by="a setting")
    assert (found.status, found.way_out) == ("missing", command("s3"))
    assert "for a setting" in found.detail
    assert packages.found_package("no-such-package", SpecifierSet(">=1"), "s3").status == "warn"
