"""A run that four processes began continues in three, two and one, with the same samples in each step."""

import json

import pytest
import torch
from deepspeed_launch import ROOT, launch, without_key_bias
from tinyrun import CONTINUOUS, tiny_plain

from pipeline.config.load import from_plain
from pipeline.train.loop import train
from pipeline.train.storage import read_checkpoint

SCRIPT = ROOT / "launch/train.py"
EXACT = dict(
    backbone=dict(drop_path=0.0),
    merging=CONTINUOUS,
    train=dict(steps=6, log_every=1, save_every=3, keep_checkpoints=5),
)
SAMPLES, HALF = 12, "checkpoints/step_00000003"
STAGE = {4: 2, 3: 1, 2: 3, 1: 0}
"""Number of processes -> ZeRO stage."""


def plain_of(digits, output, processes, **engine):
    """One process is the local engine."""
    settings = dict(type="deepspeed", zero_stage=STAGE[processes]) if processes > 1 else dict(type="local")
    plain = tiny_plain(
        digits,
        output,
        data=dict(batch_size=SAMPLES // processes, val=None),
        optim=dict(ema_decay=0.0),
        engine=settings | dict(precision="fp32") | engine,
        **EXACT,
    )
    return plain


def write(plain, path) -> str:
    path.write_text(json.dumps(plain))
    return str(path)


def losses(output) -> list[float]:
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [line["digits/loss"] for line in lines if "digits/loss" in line]


@pytest.fixture(scope="module")
def begun(digits, tmp_path_factory):
    """A whole run of one process, and one of four."""
    folder = tmp_path_factory.mktemp("sizes")
    train(from_plain(plain_of(digits, folder / "whole", 1)))
    config = write(plain_of(digits, folder / "four", 4), folder / "four.json")
    code, output = launch(SCRIPT, "--config", config, processes=4)
    assert code == 0, output
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("processes", [3, 2, 1])
def test_fewer_processes_continue_with_the_same_steps(begun, digits, tmp_path, processes):
    ended, plain = tmp_path / "ended", plain_of(digits, tmp_path / "ended", processes)
    if processes == 1:
        train(from_plain(plain), str(begun / "four" / HALF))
    else:
        arguments = ("--config", write(plain, tmp_path / "run.json"), "--resume", str(begun / "four" / HALF))
        code, output = launch(SCRIPT, *arguments, processes=processes)
        assert code == 0, output
    whole = torch.tensor(losses(begun / "whole"))
    torch.testing.assert_close(torch.tensor(losses(ended)), whole[3:], atol=1e-4, rtol=1e-4)
    one, other = (
        read_checkpoint(folder / "checkpoints/step_00000006") for folder in (begun / "whole", ended)
    )
    assert one.facts["streams"] == other.facts["streams"]
    for name, tensor in one.tensors.items():
        pair = without_key_bias(name, other.tensors[name]), without_key_bias(name, tensor)
        torch.testing.assert_close(*pair, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.slow
def test_another_global_batch_is_refused_once_with_the_settings_that_keep_it(begun, digits, tmp_path):
    plain = plain_of(digits, tmp_path / "ended", 3)
    plain["tasks"]["digits"]["data"]["batch_size"] = 5
    config = write(plain, tmp_path / "run.json")
    code, output = launch(SCRIPT, "--config", config, "--resume", str(begun / "four" / HALF), processes=3)
    assert code != 0 and "Traceback" not in output
    assert output.count("belongs to another run") == 1, output
    assert "12 there, 15 here; with 3 ranks give tasks.digits.data.batch_size 1 with 4 or 2 with 2" in output
    assert json.loads((begun / "four/config.json").read_text())["tasks"]["digits"]["data"]["batch_size"] == 3
