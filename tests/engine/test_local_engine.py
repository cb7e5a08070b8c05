import copy

import pytest
import torch
from names import owner_of
from standin import StandinModel, standin_batch, standin_config
from timm.optim import create_optimizer_v2

from pipeline.engine import build_engine, launched
from pipeline.engine.model_on_device import ModelOnDevice
from pipeline.engine.optimizers import OPTIMIZERS, state_shapes
from pipeline.errors import ConfigError
from pipeline.interfaces import JOINT_STEP
from pipeline.parts import set_trainable
from pipeline.train.gate import GradientGate
from pipeline.train.groups import parameter_groups
from pipeline.train.rates import learning_rates
from pipeline.train.steps import build_procedure


def make_engine(model=None, **sections):
    config = standin_config(**sections)
    model = copy.deepcopy(model) if model else StandinModel()
    set_trainable(model, config.train.mode)
    groups = parameter_groups(model, config)
    return build_engine(config, model, groups), groups, config


def steps(engine, groups, config, count, size=8, first=0, tasks="a"):
    """`count` optimizer steps, each with a micro-batch of each of the tasks; the last losses and the
    norms."""
    curve = []
    for step in range(first, first + count):
        for micro, task in enumerate(tasks):
            loss = engine.forward(
                standin_batch((step * len(tasks) + micro) * size, size, task), JOINT_STEP
            ).loss
            engine.backward(loss / tasks.count(task), last=micro == len(tasks) - 1)
        norm = engine.step(learning_rates(groups, step, config, 6, tasks=tasks))
        curve.append((loss.item(), norm.item()))
    return curve


def test_accumulated_micro_batches_equal_one_batch():
    start = StandinModel()
    whole, halves = make_engine(start), make_engine(start)
    steps(*whole, 4, size=8), steps(*halves, 4, size=4, tasks="aa")
    for a, b in zip(whole[0].module.parameters(), halves[0].module.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_no_gradients_are_held_between_two_steps():
    engine, groups, config = make_engine()
    for step in range(2):
        assert all(parameter.grad is None for parameter in engine.module.parameters())
        steps(engine, groups, config, 1, first=step)
    assert all(parameter.grad is None for parameter in engine.module.parameters())


TIMMS = {"sgd": "momentum"}
"""timm's name of an optimizer, where it is another one: its `sgd` has Nesterov's momentum."""
OURS = {"lamb": {"max_grad_norm": None}, "muon": {"momentum": 0.95}}
"""Arguments by which timm's is ours: the engine clips, by optim.clip_grad; timm's factory has another
momentum than its class."""


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_an_optimizer_is_timms_of_that_name_behind_clipping(name):
    start = StandinModel()
    engine, groups, config = make_engine(start, optim={"type": name})
    reference = copy.deepcopy(start)
    ref_groups = parameter_groups(reference, config)
    plain_groups = [
        {key: group[key] for key in ("params", "weight_decay")} | {"use_fallback": not group["matrix"]}
        for group in ref_groups
    ]
    plain = create_optimizer_v2(plain_groups, TIMMS.get(name, name), lr=1.0, **OURS.get(name, {}))
    steps(engine, groups, config, 3)
    for step in range(3):
        for group, lr in zip(
            plain.param_groups, learning_rates(ref_groups, step, config, 6, tasks="a").values(), strict=True
        ):
            group["lr"] = lr
        reference(standin_batch(step * 8, 8)).loss.backward()
        for parameter in reference.tasks["b"].parameters():
            parameter.grad = torch.zeros_like(parameter)
        torch.nn.utils.clip_grad_norm_(reference.parameters(), config.optim.clip_grad)
        plain.step()
        plain.zero_grad()
    for a, b in zip(engine.module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", OPTIMIZERS.names())
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing(bad, name):
    engine, groups, config = make_engine(optim={"type": name})
    steps(engine, groups, config, 2)
    before = engine.state_tensors()
    batch = standin_batch(0, 8)
    engine.backward(
        engine.forward(batch, JOINT_STEP).loss + bad, last=True
    )  # the gradient of a constant would be finite
    norm = engine.step(learning_rates(groups, 2, config, 6))
    after = engine.state_tensors()
    assert not norm.isfinite()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(norm > 0 and loss == loss for loss, norm in steps(engine, groups, config, 1, first=3))


def test_alternating_steps_leave_the_resting_kind_as_it_is():
    engine, groups, config = make_engine(train={"mode": "end_to_end", "alternate_period": 3})
    gate = GradientGate(groups, engine.device)
    for step in range(6):
        spec = build_procedure(config).spec(step)
        gate.open(spec.trains)
        before = engine.state_tensors()
        engine.backward(engine.forward(standin_batch(8 * step, 8), JOINT_STEP).loss, last=True)
        resting = [p.grad for g in groups if g["kind"] not in spec.trains for p in g["params"]]
        assert not any(grad.any() for grad in resting if grad is not None)
        engine.step(learning_rates(groups, step, config, 6, trains=spec.trains))
        after = engine.state_tensors()
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert spec.relaxed == (step in (2, 5))
        assert all((".metric." in name) == spec.relaxed for name in moved) and moved


@pytest.mark.parametrize("name", OPTIMIZERS.names())
@pytest.mark.parametrize("drawn", ["aab", "bba", "abab"])
def test_a_head_that_no_micro_batch_uses_rests_to_the_last_bit(drawn, name):
    """Neither decay nor the moments of earlier steps move it."""
    engine, groups, config = make_engine(optim={"type": name})
    steps(engine, groups, config, 1, tasks="ab")
    for step, task in enumerate(drawn, start=1):
        before = engine.state_tensors()
        steps(engine, groups, config, 1, first=step, tasks=task)
        after = engine.state_tensors()
        moved = {owner_of(name) for name in before if not torch.equal(before[name], after[name])}
        assert moved == {None, task}


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_state_goes_through_plain_tensors(name):
    first, again = (make_engine(optim={"type": name}) for _ in range(2))
    steps(*first, 3)
    state = first[0].state_tensors()
    again[0].load_state_tensors(state)
    assert steps(*first, 2, first=3) == steps(*again, 2, first=3)
    assert state.keys() == again[0].state_tensors().keys()


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_what_a_checkpoint_has_to_hold_is_what_the_engine_keeps(name):
    engine, groups, config = make_engine(optim={"type": name})
    named = {id(each): (key, tuple(each.shape)) for key, each in engine.module.named_parameters()}
    kept = {key: tuple(t.shape) for key, t in engine.state_tensors().items() if not key.startswith("model.")}
    assert state_shapes(config.optim, groups, named) == kept


def test_local_refuses_several_processes(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="engine.type is 'local'.*there are 2"):
        make_engine()


def test_bf16_keeps_the_weights_in_fp32():
    engine, groups, config = make_engine(engine={"precision": "bf16"})
    rounded, whole = steps(engine, groups, config, 2), steps(*make_engine(), 2)
    assert {parameter.dtype for parameter in engine.module.parameters()} == {torch.float32}
    assert rounded != whole, "nothing was computed in bfloat16"
    assert rounded[0][0] == pytest.approx(whole[0][0], rel=0.05)


def test_deepspeeds_word_for_the_accelerator_counts(monkeypatch):
    """Its launcher makes GPUs visible again that CUDA_VISIBLE_DEVICES hides."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert not launched.cuda() and make_engine()[0].device.type == "cpu"
    monkeypatch.delenv("DS_ACCELERATOR")
    assert launched.cuda()


class Asked(StandinModel):
    """Says under what it was evaluated."""

    def evaluate(self, batch, *, reduction=None):
        self.inference = torch.is_inference_mode_enabled()
        return {"gradients": torch.tensor(int(torch.is_grad_enabled()))}


def test_what_only_evaluates_does_so_in_inference_mode_and_an_engine_does_not():
    """A model that goes on to learn must keep nothing that was made in it."""
    evaluator, (engine, _, _) = ModelOnDevice(Asked(), "fp32"), make_engine(Asked())
    for own, inference in ((evaluator, True), (engine, False)):
        assert int(own.evaluate(standin_batch(0, 2))["gradients"]) == 0
        assert own.module.inference == inference
