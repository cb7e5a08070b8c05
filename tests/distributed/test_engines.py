import json
import math
from pathlib import Path

import engine_worker
import pytest
import torch
from deepspeed_launch import assert_same_curve, assert_same_state, ended, start_ranks
from engine_worker import DIVIDED, STAGES
from safetensors.torch import load_file, save_file

from pipeline.engine.optimizers import OPTIMIZERS, GroupAdamW
from pipeline.train import storage

TRAINED = [
    (kind, stage) for kind in engine_worker.RUNS for stage in STAGES if engine_worker.is_possible(kind, stage)
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[dict, Path, dict]:
    """One launch of two processes that trains at every stage; beside it the same by the local engine in this
    process."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("zero")
    parts = engine_worker.make("joint", 0, "local")
    engine_worker.run("joint", *parts, 0, 3)
    save_file(parts[0].state_tensors(), folder / "local.safetensors")
    for name in OPTIMIZERS.names():
        parts = engine_worker.make(name, 0, "local")
        engine_worker.run(name, *parts, 0, 3)
        save_file(parts[0].state_tensors(), folder / f"{name}.safetensors")
    state = engine_worker.wide_parts("local").state_tensors()
    # moments as after many steps; a square is not negative
    for name in (name for name in state if name.startswith(("exp_avg.", "exp_avg_sq."))):
        state[name].normal_().abs_()
    storage.write_checkpoint(folder, 1, state, {})
    codes, output = ended(start_ranks(engine_worker.__file__, str(folder)))
    assert codes == [0, 0], output
    local = {}
    for kind in engine_worker.RUNS:
        parts = engine_worker.make(kind, 0, "local")
        steps = engine_worker.steps_of(kind)
        local[kind] = engine_worker.run(kind, *parts, 0, steps), parts[0].state_tensors()
    return json.loads((folder / "results.json").read_text()), folder, local


@pytest.mark.parametrize("kind, stage", TRAINED)
def test_two_processes_equal_one_at_every_stage(runs, kind, stage):
    results, _, local = runs
    assert_same_curve(results[f"{kind}.{stage}"], local[kind][0])


@pytest.mark.parametrize("kind, stage", TRAINED)
def test_the_saved_state_is_the_same_at_every_stage(runs, kind, stage):
    _, folder, local = runs
    assert_same_state(load_file(folder / f"{kind}.{stage}.safetensors"), local[kind][1])


def test_the_gradient_of_an_embedding_goes_through_frozen_blocks_that_are_computed_again():
    """Else the runs of that name would show nothing."""
    engine, groups, config = engine_worker.make("frozen_checkpointed", 0, "local")
    before = engine.state_tensors()
    engine_worker.run("frozen_checkpointed", engine, groups, config, 0, 2)
    moved = {name for name, tensor in engine.state_tensors().items() if not torch.equal(tensor, before[name])}
    assert all(".metric." in name for name in moved)
    with_gradient = {name for name in moved if name.startswith("exp_avg.")}
    assert with_gradient and all("blocks.0.metric" in name for name in with_gradient)


@pytest.mark.parametrize("stage", STAGES)
def test_a_head_rests_to_the_last_bit_in_a_step_that_does_not_hold_its_task(runs, stage):
    """Its moments and step counts too, and though its weights decay."""
    parts = ("model", "exp_avg", "exp_avg_sq", "step")
    for moved, task in zip(runs[0][f"moved.{stage}"], engine_worker.DRAWN, strict=True):
        assert set(moved) == {f"{part}.tasks.{task}.{name}" for part in parts for name in ("weight", "bias")}


@pytest.mark.parametrize("stage", STAGES)
def test_a_local_state_continues_in_two_processes(runs, stage):
    results, _, local = runs
    assert_same_curve(results[f"continued.{stage}"], local["joint"][0][3:])


@pytest.mark.parametrize("stage", STAGES)
def test_a_state_of_two_processes_continues_in_one(runs, stage):
    _, folder, local = runs
    parts = engine_worker.make("joint", 0, "local")
    parts[0].load_state_tensors(load_file(folder / f"joint.{stage}.safetensors"))
    for name, tensor in parts[0].state_tensors().items():
        assert torch.equal(tensor, load_file(folder / f"joint.{stage}.safetensors")[name])


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_loaded_is_saved_again_to_the_last_bit(runs, stage):
    assert [rank["same"] for rank in runs[0][f"wide.{stage}"]] == [True, True]


@pytest.mark.parametrize("name", OPTIMIZERS.names())
@pytest.mark.parametrize("stage", STAGES)
def test_the_state_of_each_optimizer_is_saved_as_it_was_loaded(runs, stage, name):
    """Of one process, in two; where the optimizer needs whole parameters, at stage 0 alone."""
    possible = engine_worker.is_possible(name, stage)
    assert runs[0].get(f"kept.{name}.{stage}") is (True if possible else None)


@pytest.mark.parametrize("stage", STAGES)
def test_a_rank_reads_no_more_than_it_keeps(runs, stage):
    """Its part of what is divided. What all keep, and weights that DeepSpeed divides, rank 0 reads for
    all."""
    first, second = (rank["read"] for rank in runs[0][f"wide.{stage}"])
    for key in ("model", *GroupAdamW.moments):
        if stage == 0 or (key == "model" and stage != "fsdp"):
            assert (first[key], second[key]) == (1, 0)
        else:
            assert first[key] + second[key] == pytest.approx(1) and 0.45 < first[key] < 0.55


@pytest.mark.parametrize("stage", STAGES)
def test_a_state_is_exchanged_in_few_collectives(runs, stage):
    """Not in one or two for each of about 20 parameters. At stage 3 DeepSpeed itself gathers weights."""
    for rank in runs[0][f"wide.{stage}"]:
        saving, loading = rank["saving"], rank["loading"]
        most = 0 if stage == 0 else 8 if stage in DIVIDED else 4
        assert saving.get("all_gather_into_tensor", 0) <= most
        assert not {"all_reduce", "broadcast"} & saving.keys()
        assert stage == 3 or sum(loading.values()) <= 4


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["joint", "merge_cost"])
def test_one_ranks_nan_skips_the_step_everywhere(runs, kind, stage):
    """Also where a label is drawn from what is not a number."""
    results, _, local = runs
    curve = results[f"nan.{kind}.{stage}"]
    assert_same_curve(curve[:2], local[kind][0][:2])
    assert not math.isfinite(curve[2][1])
    assert all(math.isfinite(loss) and math.isfinite(norm) for loss, norm in curve[3:])


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_is_the_same_autocast_at_every_stage(runs, stage):
    results, _, local = runs
    torch.testing.assert_close(
        torch.tensor(results[f"bf16.{stage}"]), torch.tensor(local["joint"][0]), atol=1e-2, rtol=1e-2
    )
    assert results[f"bf16.{stage}"] != local["joint"][0]
