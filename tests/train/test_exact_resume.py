import json
import os
import signal

import psutil
import pytest
import torch
from tiny import OF_IMAGES
from tiny_lemevit import tiny_section
from tinyrun import tiny_clips_plain, tiny_tasks_plain

from pipeline.config.load import from_plain
from pipeline.engine.optimizers import OPTIMIZERS
from pipeline.errors import CheckpointError
from pipeline.merging.policies import POLICIES
from pipeline.run_folder import folder_name, pointed
from pipeline.train import loop
from pipeline.train.loop import train
from pipeline.train.storage import read_checkpoint

VARIANTS = {
    "joint": dict(),
    "accumulation_and_mixup": dict(
        engine=dict(accumulation=2),
        augment=dict(
            mixup=0.8,
            cutmix_minmax=[0.2, 0.8],
            mix_mode="elem",
            random_erasing=0.25,
            vflip=0.5,
            grayscale=0.3,
            crop_ratio=[0.5, 2.0],
            train_interpolation="random",
        ),
    ),
    "end_to_end_with_drawn_reduction": dict(
        train=dict(mode="end_to_end", alternate_period=3, reduction_range=[1, 3])
    ),
    "modular_in_bf16": dict(train=dict(mode="modular"), engine=dict(precision="bf16")),
    "consistency": dict(
        objective=dict(type="consistency", options=dict(confidence=0.05)), augment=dict(mixup=0.8)
    ),
    "budget": dict(
        merging=dict(policy="as_vit", options=dict(temperature=1.0)), objective=dict(type="budget")
    ),
    "views_and_mixup_by_workers": dict(
        data=dict(workers=1, views=2), augment=dict(mixup=0.8, cutmix=1.0, random_erasing=0.25)
    ),
    "lemevit": dict(
        backbone=tiny_section(),
        merging=dict(policy="none", reduction=0),
        train=dict(mode="backbone"),
        data=dict(img_size=64),
    ),
}


OF_TASKS = {
    "all_fixed_shared": dict(
        tasks=dict(masks=dict(merging=dict(reduction=1), accumulation=2), captions=dict(weight=0.3))
    ),
    "all_gradient_norm_adapter": dict(
        balancing=dict(type="gradient_norm", every=4), merging=dict(embedding="adapter")
    ),
    "all_uncertainty_with_average": dict(
        balancing=dict(type="uncertainty", every=0), optim=dict(ema_decay=0.9)
    ),
    "sampled_uncertainty_per_task": dict(
        mixing=dict(mode="sampled"),
        balancing=dict(type="uncertainty", every=4),
        merging=dict(embedding="per_task"),
    ),
    "sampled_by_share_and_temperature": dict(
        mixing=dict(mode="sampled", temperature=2.0),
        tasks=dict(
            digits=dict(share=1.0),
            captions=dict(share=4.0),
            masks=dict(share=2.0, merging=dict(reduction_range=[0, 3])),
        ),
        engine=dict(accumulation=2),
    ),
    "alternating_gradient_norm_measured_late": dict(
        train=dict(mode="end_to_end", alternate_period=3), balancing=dict(type="gradient_norm", every=5)
    ),
}
"""Three tasks. In the last one a measurement is due in step 5, which trains the embeddings alone, and so made
in step 6, after the save."""


def variant(name, table=VARIANTS, **train_options):
    sections = dict(table[name])
    return sections | {"train": dict(steps=10) | sections.get("train", {}) | train_options}


@pytest.mark.parametrize("name", VARIANTS)
def test_ten_steps_equal_six_saved_loaded_and_four(tiny_run, tmp_path, name):
    train(tiny_run(tmp_path / "whole", **variant(name, save_every=6, keep_checkpoints=5)))
    part_way = tmp_path / "whole/checkpoints/step_00000006"
    torch.manual_seed(99)  # what the process did before must not matter
    train(tiny_run(tmp_path / "parts", **variant(name)), resume=str(part_way))
    whole = assert_same_end(tmp_path, part_way)
    kinds = {name.split(".")[0] for name in whole.tensors}
    assert kinds == {"model", "exp_avg", "exp_avg_sq", "step", "ema"}, "no state of a generator"


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS.names() if name != "adamw"])
def test_four_steps_of_each_optimizer_equal_two_saved_loaded_and_two(tiny_run, tmp_path, name):
    def sections(**train_options):
        return dict(optim=dict(type=name), train=dict(mode="joint", steps=4) | train_options)

    train(tiny_run(tmp_path / "whole", **sections(save_every=2, keep_checkpoints=5)))
    part_way = tmp_path / "whole/checkpoints/step_00000002"
    train(tiny_run(tmp_path / "parts", **sections()), resume=str(part_way))
    assert_same_end(tmp_path, part_way, steps=4)


def test_four_steps_on_clips_equal_two_saved_loaded_and_two(moving_digits, tmp_path):
    """With all on that is drawn: frames, crops, colours, erasing, mixing, views."""

    def run(name, **train_options):
        augment = dict(rand_augment="rand-m5", random_erasing=0.3, mixup=0.8, cutmix=1.0)
        data = dict(stride=1, views=2)
        steps = dict(mode="joint", steps=4) | train_options
        made = tiny_clips_plain(moving_digits, tmp_path / name, augment=augment, data=data, train=steps)
        made["backbone"] |= dict(frames=4)
        made["tasks"]["digits"]["data"] |= dict(val=None, batch_size=4)
        return from_plain(made)

    train(run("whole", save_every=2, keep_checkpoints=5))
    half = tmp_path / "whole/checkpoints/step_00000002"
    train(run("parts"), resume=str(half))
    assert_same_end(tmp_path, half, steps=4)


@pytest.mark.slow
@pytest.mark.parametrize("policy", OF_IMAGES)
def test_four_steps_under_each_policy_equal_two_saved_loaded_and_two(tiny_run, tmp_path, policy):
    mode = "joint" if POLICIES.usual(policy).learned else "backbone"

    def sections(**train_options):
        merging = dict(policy=policy, reduction=2 if POLICIES.build(policy).merges else 0)
        return dict(merging=merging, train=dict(mode=mode, steps=4) | train_options)

    train(tiny_run(tmp_path / "whole", **sections(save_every=2, keep_checkpoints=5)))
    part_way = tmp_path / "whole/checkpoints/step_00000002"
    train(tiny_run(tmp_path / "parts", **sections()), resume=str(part_way))
    assert_same_end(tmp_path, part_way, steps=4)


@pytest.mark.parametrize("name", OF_TASKS)
def test_ten_steps_of_three_tasks_equal_six_saved_loaded_and_four(digits, tmp_path, name):
    def run(folder, **train_options):
        plain = tiny_tasks_plain(digits, tmp_path / folder, **variant(name, OF_TASKS, **train_options))
        for task in plain["tasks"].values():
            task["data"] |= dict(val=None)
        return from_plain(plain)

    train(run("whole", save_every=6, keep_checkpoints=5))
    part_way = tmp_path / "whole/checkpoints/step_00000006"
    torch.manual_seed(99)
    train(run("parts"), resume=str(part_way))
    progress = assert_same_end(tmp_path, part_way).facts["progress"]
    before = read_checkpoint(part_way).facts["progress"]["samples"]
    batches = {task: settings.data.batch_size for task, settings in run("x").tasks.items()}
    assert all(progress["samples"].get(task, 0) % size == 0 for task, size in batches.items())
    assert any(progress["samples"][task] > count for task, count in before.items())


def test_a_tasks_micro_batches_may_be_cut_otherwise_but_the_mix_may_not_change(digits, tmp_path):
    def run(output, masks, **sections):
        plain = tiny_tasks_plain(digits, tmp_path / output, train=dict(steps=4, save_every=2), **sections)
        for task in plain["tasks"].values():
            task["data"] |= dict(val=None)
        plain["tasks"]["masks"]["accumulation"] = masks
        plain["tasks"]["masks"]["data"]["batch_size"] = 4 // masks
        return from_plain(plain)

    train(run("whole", 1))
    half = str(tmp_path / "whole/checkpoints/step_00000002")
    train(run("parts", 2), resume=half)
    whole, parts = (
        read_checkpoint(tmp_path / name / "checkpoints/step_00000004").facts for name in ("whole", "parts")
    )
    assert (whole["progress"], whole["streams"]) == (parts["progress"], parts["streams"])
    for change in (
        dict(mixing=dict(mode="sampled")),
        dict(balancing=dict(type="uncertainty")),
        dict(tasks=dict(digits=dict(weight=2.0))),
    ):
        with pytest.raises(CheckpointError, match="another"):
            train(run("other", 1, **change), resume=half)


def assert_same_end(folder, part_way, steps=10):
    whole, parts = (
        read_checkpoint(folder / name / "checkpoints" / folder_name(steps)) for name in ("whole", "parts")
    )
    assert whole.tensors.keys() == parts.tensors.keys()
    differing = [name for name in whole.tensors if not torch.equal(whole.tensors[name], parts.tensors[name])]
    assert differing == []
    assert whole.facts["progress"] == parts.facts["progress"]
    assert whole.facts["streams"] == parts.facts["streams"]
    assert not all(
        torch.equal(whole.tensors[name], tensor) for name, tensor in read_checkpoint(part_way).tensors.items()
    )
    return whole


def signal_after(monkeypatch, steps, number):
    """To this process and its children, once so many steps are done."""
    step = loop.train_step

    def step_with_signal(run, *rest):
        norm = step(run, *rest)
        if run.progress.step == steps:
            for pid in (os.getpid(), *(child.pid for child in psutil.Process().children())):
                os.kill(pid, number)
        return norm

    monkeypatch.setattr(loop, "train_step", step_with_signal)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_saves_and_auto_continues_to_the_same_end(
    tiny_run, tmp_path, monkeypatch, capfd, number
):
    """A scheduler signals data workers too, and so does a terminal."""
    train(tiny_run(tmp_path / "whole"))
    signal_after(monkeypatch, 3, number)
    before = signal.getsignal(number)
    train(tiny_run(tmp_path / "parts", data=dict(workers=1)))
    assert "stopped as asked after step 3 of 6" in capfd.readouterr().err
    assert signal.getsignal(number) is before
    assert not (tmp_path / "parts/checkpoints/step_00000006").exists()
    monkeypatch.undo()
    train(tiny_run(tmp_path / "parts"))
    whole, parts = (
        read_checkpoint(tmp_path / name / "checkpoints/step_00000006").tensors for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    assert [line.split(",")[:4] for line in lines[0]][-1] == [line.split(",")[:4] for line in lines[1]][-1]


def test_too_many_steps_that_are_not_finite_stop_the_run_behind_a_checkpoint(tiny_run, tmp_path, monkeypatch):
    from pipeline.errors import PipelineError
    from pipeline.model import MultiTaskModel

    forward = MultiTaskModel.forward

    def broken(self, batch, spec):
        output = forward(self, batch, spec)
        return type(output)(output.loss * float("nan"), output.logs, output.predictions)

    monkeypatch.setattr(MultiTaskModel, "forward", broken)
    with pytest.raises(PipelineError, match="6 steps in a row.*not finite.*lower optim.lr"):
        train(tiny_run(tmp_path / "run", train=dict(steps=8, max_nonfinite=5, log_every=6)))
    assert read_checkpoint(tmp_path / "run/checkpoints/step_00000006").facts["progress"]["nonfinite"] == 6
    monkeypatch.undo()
    train(tiny_run(tmp_path / "run", train=dict(steps=8, max_nonfinite=5, log_every=6)))


def val_lines(output):
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "val/digits/top1" in line]


def test_a_request_to_stop_in_the_last_step_leaves_the_evaluation_to_the_resumed_run(
    tiny_run, tmp_path, monkeypatch, capfd
):
    train(tiny_run(tmp_path / "whole"))
    signal_after(monkeypatch, 6, signal.SIGTERM)
    train(tiny_run(tmp_path / "parts"))
    assert "stopped as asked after step 6 of 6" in capfd.readouterr().err
    assert val_lines(tmp_path / "parts") == []
    monkeypatch.undo()
    train(tiny_run(tmp_path / "parts"))
    assert val_lines(tmp_path / "parts") == val_lines(tmp_path / "whole") != []
    facts = [
        read_checkpoint(pointed(tmp_path / name / "checkpoints", "best")).facts["progress"]
        for name in ("whole", "parts")
    ]
    assert (
        facts[0] == facts[1]
        and facts[0]["step"] == facts[0]["evaluated"] == 6
        and facts[0]["best"] is not None
    )


def test_a_run_that_was_ended_in_its_last_evaluation_makes_it_when_it_is_resumed(
    tiny_run, tmp_path, monkeypatch
):
    """And only once. Its last step was saved before."""
    train(tiny_run(tmp_path / "whole"))

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_run(tmp_path / "parts"))
    root = tmp_path / "parts" / "checkpoints"
    assert pointed(root, "latest").name == "step_00000006" and pointed(root, "best") is None
    monkeypatch.undo()
    train(tiny_run(tmp_path / "parts"))
    assert pointed(root, "best") == root / "step_00000006"
    whole, parts = (
        read_checkpoint(tmp_path / name / "checkpoints/step_00000006") for name in ("whole", "parts")
    )
    assert all(torch.equal(tensor, parts.tensors[name]) for name, tensor in whole.tensors.items())
    assert whole.facts["progress"] == parts.facts["progress"]
    train(tiny_run(tmp_path / "parts"))
    assert val_lines(tmp_path / "parts") == val_lines(tmp_path / "whole") != []
