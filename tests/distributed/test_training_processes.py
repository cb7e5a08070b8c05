"""`deepspeed launch/train.py` as a user starts it, two processes on the CPU, held against one local
process."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from choices import Choices
from deepspeed_launch import ended, finish, launch, start, start_ranks, without_key_bias
from scores import scored_again
from tinyrun import CONTINUOUS, tiny_plain

from launch.train import main
from pipeline.config.load import from_plain
from pipeline.train.loop import train
from pipeline.train.storage import read_checkpoint

SCRIPT = Path(__file__).parents[2] / "launch/train.py"
EXACT = dict(
    backbone=dict(drop_path=0.0),
    merging=CONTINUOUS,
    train=dict(steps=6, log_every=1, save_every=3, keep_checkpoints=5),
)
"""No dropout, whose draws differ by rank; random erasing, mixup and crops do not come from a rank's
generator."""


def plain_of(digits: Path, output: Path, *, batch_size: int, **sections) -> dict:
    return tiny_plain(digits, output, data=dict(batch_size=batch_size), **{**EXACT, **sections})


def write(plain: dict, path: Path) -> str:
    path.write_text(json.dumps(plain))
    return str(path)


def figures(output: Path, name: str) -> list[float]:
    return [
        line[name]
        for line in map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
        if name in line
    ]


def shared_memory() -> set[Path]:
    return set(Path("/dev/shm").glob("deepspeed*"))


def assert_same_end(one: Path, other: Path):
    tensors = [read_checkpoint(folder / "checkpoints/step_00000006").tensors for folder in (one, other)]
    assert tensors[0].keys() == tensors[1].keys()
    for name in tensors[0]:
        pair = without_key_bias(name, tensors[1][name]), without_key_bias(name, tensors[0][name])
        torch.testing.assert_close(*pair, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


def test_two_processes_train_evaluate_and_save_as_one_does(digits, tmp_path):
    one, two, again = tmp_path / "one", tmp_path / "two", tmp_path / "again"
    train(from_plain(plain_of(digits, one, batch_size=8)))
    engine = dict(type="deepspeed", zero_stage=2, precision="fp32")
    before = shared_memory()
    code, output = launch(
        SCRIPT, "--config", write(plain_of(digits, two, batch_size=4, engine=engine), tmp_path / "two.json")
    )
    assert code == 0, output
    assert shared_memory() <= before, "DeepSpeed's files of 67 MB would stay for good"
    torch.testing.assert_close(
        torch.tensor(figures(two, "digits/loss")),
        torch.tensor(figures(one, "digits/loss")),
        atol=1e-4,
        rtol=1e-4,
    )
    assert figures(two, "val/digits/samples") == figures(one, "val/digits/samples") == [25.0]
    assert_same_end(one, two)
    for name, value in scored_again(two).items():
        assert figures(two, name) == [pytest.approx(value, rel=1e-6)], name
    train(from_plain(plain_of(digits, again, batch_size=8)), resume=str(two / "checkpoints/step_00000003"))
    assert_same_end(one, again)


def test_a_local_checkpoint_continues_in_two_processes_at_zero_3(digits, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    sections = dict(
        optim=dict(ema_decay=0.0), train=EXACT["train"] | dict(mode="end_to_end", alternate_period=2)
    )

    def plain(output: Path, batch_size: int, **engine) -> dict:
        """Not evaluated. The seed is one of 16, whose choices are the clearest, as a step of the backbone
        merges hard."""
        made = plain_of(digits, output, batch_size=batch_size, **sections, **engine)
        made["tasks"]["digits"]["data"]["val"] = None
        return made | dict(seed=14)

    with Choices() as choices:
        train(from_plain(plain(one, 8)))
    assert choices.least > 2e-5, "a rounding of 1e-6 could choose otherwise"
    config = write(
        plain(two, 4, engine=dict(type="deepspeed", zero_stage=3, precision="fp32")), tmp_path / "two.json"
    )
    codes, output = ended(
        start_ranks(SCRIPT, "--config", config, "--resume", str(one / "checkpoints/step_00000003"))
    )
    assert codes == [0, 0], output
    expected = torch.tensor(figures(one, "digits/loss")[3:])
    torch.testing.assert_close(torch.tensor(figures(two, "digits/loss")), expected, atol=1e-4, rtol=1e-4)
    assert_same_end(one, two)


def test_a_signal_to_one_rank_stops_both_with_a_checkpoint(digits, tmp_path):
    output = tmp_path / "run"
    engine = dict(type="deepspeed", zero_stage=1, precision="bf16")
    plain = plain_of(digits, output, batch_size=4, engine=engine, train=dict(steps=100_000, log_every=1))
    started = start_ranks(SCRIPT, "--config", write(plain, tmp_path / "run.json"))
    started[0].until("lr/head")
    started[1].send_signal(signal.SIGTERM)
    codes, text = ended(started)
    assert codes == [0, 0], text
    assert text.count("stopped as asked after step") == 1
    assert len(list((output / "checkpoints").glob("step_*"))) == 1


@pytest.mark.slow
def test_a_killed_rank_with_data_workers_leaves_nothing_behind(digits, tmp_path):
    output = tmp_path / "run"
    engine = dict(type="deepspeed", zero_stage=1, precision="fp32")
    plain = plain_of(digits, output, batch_size=4, engine=engine, train=dict(steps=100_000, log_every=1))
    plain["tasks"]["digits"]["data"]["workers"] = 1
    process = start(SCRIPT, "--config", write(plain, tmp_path / "run.json"), processes=2)
    deadline = time.monotonic() + 600
    while (
        time.monotonic() < deadline and not (output / "metrics.jsonl").exists() or not figures(output, "lr")
    ):
        time.sleep(0.2)
    all_ = psutil.Process(process.pid).children(recursive=True)
    ranks = [child for child in all_ if str(SCRIPT) in child.cmdline()[2:4]]
    workers = [child for child in ranks if child.ppid() in {rank.pid for rank in ranks}]
    assert len(workers) == 2
    next(child for child in ranks if child not in workers and child.environ().get("RANK") == "1").kill()
    code, text = finish(process)
    assert code != 0, text
    assert text.count("train.py: another of the 2 processes has ended") == 1 and "Traceback" not in text, text
    assert not psutil.wait_procs(all_, timeout=600)[1], "a rank or a worker is left"


def test_a_mistake_is_told_once_by_rank_0(digits, tmp_path):
    plain = plain_of(digits, tmp_path / "run", batch_size=4, engine=dict(type="local"))
    codes, text = ended(start_ranks(SCRIPT, "--config", write(plain, tmp_path / "run.json")))
    assert codes[0] == 2 and "Traceback" not in text
    assert text.count("engine.type is 'local'") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["optim.lrr=1"], "did you mean 'lr'"),
        (["backbone.img_size=33"], "does not divide by patch 8"),
        (["tasks.digits.data.train=/nowhere"], "/nowhere"),
        (["engine.zero_stage=3", "engine.type=deepspeed"], "optim.ema_decay needs whole parameters"),
        (["engine.type=deepspeed", "engine.deepspeed.gradient_clipping=7.0"], "but optim.clip_grad says 5.0"),
    ],
)
def test_a_users_mistake_exits_2_before_anything_is_started(
    digits, tmp_path, monkeypatch, capsys, options, message
):
    config = write(plain_of(digits, tmp_path / "run", batch_size=4), tmp_path / "run.json")
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", config, "--cfg-options", *options])
    assert main() == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists() and not torch.distributed.is_initialized()


def test_a_new_run_does_not_overwrite_an_old_one(digits, tmp_path, monkeypatch, capsys):
    plain = plain_of(digits, tmp_path / "run", batch_size=4, train=dict(steps=3))
    train(from_plain(plain))
    monkeypatch.setattr(
        sys, "argv", ["train.py", "--config", write(plain, tmp_path / "run.json"), "--resume", "none"]
    )
    assert main() == 2
    assert "which --resume none does not touch; continue it with --resume auto" in capsys.readouterr().err


def test_without_the_package_it_says_how_to_install():
    result = subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPT), "--config", "x"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 2 and "pip install -e ." in result.stderr
