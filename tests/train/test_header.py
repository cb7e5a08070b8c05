"""What a run says at its start is what it is."""

import pytest
from tinyrun import tiny_tasks_plain

from pipeline.config.load import from_plain
from pipeline.engine import launched
from pipeline.train.loop import train


@pytest.fixture
def said(capfd):
    """Lines on stderr by their first word; of a task, by its name."""

    def call(config, **options) -> dict[str, str]:
        train(config, **options)
        return {
            line.split(":")[0].split(" after")[0]: line
            for line in reversed(capfd.readouterr().err.splitlines())
        }

    return call


def test_a_run_says_device_model_batch_length_and_where_it_goes_on(tiny_run, tmp_path, said):
    config = tiny_run(engine=dict(accumulation=2), train=dict(mode="modular", steps=6, save_every=4))
    model = build_run_sizes(config)
    lines = said(config)
    assert "; ranks: 1; engine: local, fp32" in lines["device"]
    assert lines["device"].startswith("device: GPU " if launched.cuda() else "device: CPU (")
    assert f"{model[0] / 1e3:.3g} k parameters, {model[1]} trained (train.mode modular)" in lines["model"]
    assert (
        "batch 16 (8 a rank x 1 ranks x 2 accumulated), 1.2 epochs of 80 samples; backbone" in lines["digits"]
    )
    assert "MACs per image of 32x32" in lines["digits"] and "% of" in lines["digits"]
    assert lines["steps"] == f"steps: 6; output: {tmp_path / 'run'}"
    assert "continues" not in lines
    folder = tmp_path / "run/checkpoints/step_00000004"
    assert said(config, resume=str(folder))["continues"] == f"continues after step 4 of 6, from {folder}"


def build_run_sizes(config) -> tuple[int, int]:
    from pipeline.model import build_model

    sizes = {name: parameter.numel() for name, parameter in build_model(config).named_parameters()}
    return sum(sizes.values()), sum(size for name, size in sizes.items() if ".metric." in name)


def test_each_task_says_what_it_costs_and_a_frozen_one_that_it_is(digits, tmp_path, said):
    own = dict(digits=dict(merging=dict(reduction=0)), captions=dict(merging=dict(reduction=3)))
    plain = tiny_tasks_plain(digits, tmp_path / "run", tasks=own)
    plain["tasks"]["masks"] |= {"frozen": True, "data": plain["tasks"]["masks"]["data"] | {"train": None}}
    lines = said(from_plain(plain))
    shares = {task: float(lines[task].split(" %")[0].split()[-1]) for task in ("digits", "captions", "masks")}
    assert shares["captions"] < shares["masks"] < 100 <= shares["digits"] + 0.5
    assert lines["masks"].startswith("masks: frozen; backbone")
