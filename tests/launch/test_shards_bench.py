"""`dtem shards bench` measures the settings that it is given, and counts cores for the workers alone."""

import json
import math

import pytest
import torch
from PIL import Image
from shardkit import encoded, write_tar

from launch.bench.shards import NAMES

STAGES = ["read", "decode", "augment", "collate", "one core", "device", "batches"]
SMALL = ("--img-size", 8, "--samples", 6, "--batch-size", 4, "--workers", 0)


@pytest.mark.parametrize(
    ("options", "device"),
    [
        (("--decode", "worker", "--set", "augment.hflip=0"), False),
        (("--decode", "scaled"), False),
        (("--decode", "cuda", "--on-device", "--rand-augment", "rand-m9"), True),
    ],
)
def test_each_way_to_decode_is_measured_and_its_cores_are_counted(dtem, digits, tmp_path, options, device):
    out = tmp_path / "rates.json"
    said = dtem("shards", "bench", digits, *SMALL, *options, "--rate", 5000, "--out", out)
    facts = json.loads(out.read_text())
    assert facts["data"]["decode"] == options[1]
    assert facts["data"]["augment"]["hflip"] == (0 if "--set" in options else None)
    rates = {rate["stage"]: rate["samples_per_s"] for rate in facts["rates"]}
    names = NAMES.get(options[1], {})
    assert list(rates) == [names.get(stage, stage) for stage in STAGES]
    assert all(rate > 0 for rate in rates.values())
    assert facts["cores"] == {"samples_per_s": 5000, "cores": math.ceil(5000 / rates["one core"])}
    assert f"takes {facts['cores']['cores']} core" in said
    here = "there is no GPU here" if not torch.cuda.is_available() else "of the GPU's time"
    assert (here in said) == device


def test_a_setting_that_there_is_not_is_told_with_the_nearest(dtem, digits):
    said = dtem("shards", "bench", digits, *SMALL, "--set", "augment.hflp=0", code=2)
    assert "hflp" in said and "hflip" in said


def test_what_has_an_option_of_its_own_is_no_setting(dtem, digits):
    for setting, option in (("workers=7", "--workers"), ("train=elsewhere", "SET")):
        said = dtem("shards", "bench", digits, *SMALL, "--set", setting, code=2)
        assert f"--set {setting}: give {option} in its place" in said


def test_where_the_rates_go_is_looked_at_before_they_are_measured(dtem, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("launch.bench.shards.measure", lambda *_: pytest.fail("it measures"))
    said = dtem("shards", "bench", digits, *SMALL, "--out", tmp_path, code=2)
    assert "is a folder; give the name of a file" in said


@pytest.mark.parametrize("decode", ["worker", "scaled", "cuda"])
def test_a_damaged_picture_is_passed_over_as_in_training(dtem, tmp_path, decode):
    """Its header is good. Each batch of 8 of the 6 samples has it, so a smaller one is measured."""
    folder = tmp_path / "set"
    files = [encoded(Image.new("RGB", (48, 40), (number, 0, 0)), "JPEG") for number in range(6)]
    files[2] = files[2][: files[2].index(b"\xff\xdb")] + files[2][files[2].index(b"\xff\xc0") :]
    members = []
    for number, data in enumerate(files):
        members += [(f"k{number}.jpg", data), (f"k{number}.cls", b"0")]
    write_tar(folder / "part-000000.tar", members)
    dtem("shards", "make", "index", folder)
    how = ("--img-size", 8, "--samples", 6, "--batch-size", 8, "--workers", 0, "--decode", decode)
    dtem("shards", "bench", folder, *how, "--out", tmp_path / "rates.json")
    rates = json.loads((tmp_path / "rates.json").read_text())["rates"]
    assert len(rates) == len(STAGES) and all(rate["samples_per_s"] > 0 for rate in rates)
