import os
import signal

import psutil
import pytest
import torch

from pipeline.train import loop
from pipeline.train.loop import train
from pipeline.train.storage import read_checkpoint

VARIANTS = {
    "joint": dict(),
    "accumulation_and_mixup": dict(engine=dict(accumulation=2), augment=dict(mixup=0.8, cutmix=1.0, random_erasing=0.25)),
    "end_to_end_with_drawn_reduction": dict(train=dict(mode="end_to_end", alternate_period=3, reduction_range=[1, 3])),
    "modular_in_bf16": dict(train=dict(mode="modular"), engine=dict(precision="bf16")),
    "workers": dict(data=dict(workers=1)),
}


def variant(name, **train_options):
    sections = dict(VARIANTS[name])
    return sections | {"train": dict(steps=10) | sections.get("train", {}) | train_options}


@pytest.mark.parametrize("name", VARIANTS)
def test_ten_steps_equal_six_saved_loaded_and_four(tiny_run, tmp_path, name):
    train(tiny_run(tmp_path / "whole", **variant(name, save_every=6, keep_checkpoints=5)))
    part_way = tmp_path / "whole/checkpoints/step_00000006"
    torch.manual_seed(99)  # what the process did before must not matter
    train(tiny_run(tmp_path / "parts", **variant(name)), resume=str(part_way))
    whole = read_checkpoint(tmp_path / "whole/checkpoints/step_00000010")
    parts = read_checkpoint(tmp_path / "parts/checkpoints/step_00000010")
    assert whole.tensors.keys() == parts.tensors.keys()
    assert {name.split(".")[0] for name in whole.tensors} == {"model", "exp_avg", "exp_avg_sq", "step", "ema", "rng"}
    differing = [name for name in whole.tensors if not torch.equal(whole.tensors[name], parts.tensors[name])]
    assert differing == []
    assert whole.facts["progress"] == parts.facts["progress"]
    assert whole.facts["streams"] == parts.facts["streams"]
    assert not all(torch.equal(whole.tensors[name], tensor) for name, tensor in read_checkpoint(part_way).tensors.items())


def test_a_signal_to_all_processes_saves_and_auto_continues_to_the_same_end(tiny_run, tmp_path, monkeypatch, capfd):
    """A scheduler signals data workers too."""
    train(tiny_run(tmp_path / "whole"))
    step = loop._train_step

    def step_with_signal(run, *rest):
        if run.progress.step == 2:
            for pid in (os.getpid(), *(child.pid for child in psutil.Process().children())):
                os.kill(pid, signal.SIGTERM)
        return step(run, *rest)

    monkeypatch.setattr(loop, "_train_step", step_with_signal)
    before = signal.getsignal(signal.SIGTERM)
    train(tiny_run(tmp_path / "parts", data=dict(workers=1)))
    assert "stopped as asked after step 3 of 6" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (tmp_path / "parts/checkpoints/step_00000006").exists()
    monkeypatch.undo()
    train(tiny_run(tmp_path / "parts"))
    whole, parts = (read_checkpoint(tmp_path / name / "checkpoints/step_00000006").tensors for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    assert [line.split(",")[:4] for line in lines[0]][-1] == [line.split(",")[:4] for line in lines[1]][-1]


def test_too_many_steps_that_are_not_finite_stop_the_run(tiny_run, monkeypatch):
    from pipeline.errors import PipelineError
    from pipeline.model import MultiTaskModel

    forward = MultiTaskModel.forward

    def broken(self, batch, **options):
        output = forward(self, batch, **options)
        return type(output)(output.loss * float("nan"), output.logs, output.predictions)

    monkeypatch.setattr(MultiTaskModel, "forward", broken)
    with pytest.raises(PipelineError, match="6 steps in a row.*not finite.*lower optim.lr"):
        train(tiny_run(train=dict(steps=8, max_nonfinite=5)))
