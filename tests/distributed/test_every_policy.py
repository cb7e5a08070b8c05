"""Each registered policy in training: at each stage of ZeRO in two processes, and continued to the same bits.
What trains by its task's own loss at one stage is in test_engines.py."""

import json

import engine_worker
import policy_runs
import pytest
import torch
from deepspeed_launch import assert_same_curve, assert_same_state, ended, start_ranks
from engine_worker import EVERY_POLICY, STAGES, make, run
from safetensors.torch import load_file


def test_the_policies_share_out_all_stages():
    assert {policy_runs.stage_of(kind) for kind in policy_runs.USUAL} == {0, 1, 2, 3}
    assert [kind.partition(policy_runs.PARTS)[0] for kind in policy_runs.USUAL] == policy_runs.OURS


@pytest.mark.parametrize("kind", policy_runs.USUAL)
def test_a_run_under_each_policy_continues_to_the_same_bits(kind):
    whole, first, then = (make(kind, 0, "local") for _ in range(3))
    curve = run(kind, *whole, 0, 2)
    begun = run(kind, *first, 0, 1)
    then[0].load_state_tensors(first[0].state_tensors())
    assert begun + run(kind, *then, 1, 2) == curve
    end = whole[0].state_tensors()
    assert all(torch.equal(tensor, end[name]) for name, tensor in then[0].state_tensors().items())
    assert any(not torch.equal(tensor, end[name]) for name, tensor in first[0].state_tensors().items())


@pytest.mark.slow
def test_each_policy_trains_by_each_objective_at_each_stage(tmp_path):
    codes, output = ended(start_ranks(engine_worker.__file__, EVERY_POLICY, str(tmp_path)))
    assert codes == [0, 0], output
    curves = json.loads((tmp_path / "results.json").read_text())
    for kind in policy_runs.EVERY:
        parts = make(kind, 0, "local")
        alone = run(kind, *parts, 0, policy_runs.STEPS), parts[0].state_tensors()
        for stage in STAGES:
            assert_same_curve(curves[f"{kind}.{stage}"], alone[0])
            assert_same_state(load_file(tmp_path / f"{kind}.{stage}.safetensors"), alone[1])
