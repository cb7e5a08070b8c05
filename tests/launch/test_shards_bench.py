"""`dtem shards bench` measures the settings that it is given, and counts cores for the workers alone."""

import json
import math

import pytest
import torch

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
    assert list(rates) == STAGES and all(rate > 0 for rate in rates.values())
    assert facts["cores"] == {"samples_per_s": 5000, "cores": math.ceil(5000 / rates["one core"])}
    assert f"takes {facts['cores']['cores']} core" in said
    here = "there is no GPU here" if not torch.cuda.is_available() else "of the GPU's time"
    assert (here in said) == device


def test_a_setting_that_there_is_not_is_told_with_the_nearest(dtem, digits):
    said = dtem("shards", "bench", digits, *SMALL, "--set", "augment.hflp=0", code=2)
    assert "hflp" in said and "hflip" in said
