"""Steps in which the loss transformer learns: what it learns from, who rests, and what a run keeps of it."""

import json
from dataclasses import replace

import pytest
import torch
from meltr_run import BY_MELTR, PERIOD, plain_of

from pipeline.balancing import MELTR
from pipeline.config.load import from_plain
from pipeline.errors import ConfigError
from pipeline.parts import BALANCE, BASE, HEAD
from pipeline.train.bilevel import Bilevel
from pipeline.train.loop import train
from pipeline.train.metrics import MetricSums
from pipeline.train.mixing import tasks_of_step
from pipeline.train.reporting import Stopwatch
from pipeline.train.setup import build_run
from pipeline.train.storage import read_checkpoint
from pipeline.train.train_step import train_step


@pytest.fixture
def run(digits, tmp_path):
    return build_run(from_plain(plain_of(digits, tmp_path / "run")), "none")


def batches_of(run, step=0):
    """Those of the step, by task; each stream gives them again."""
    found = {name: [] for name in run.streams}
    streams = {name: iter(stream) for name, stream in run.streams.items()}
    for name in tasks_of_step(run.resolved, step):
        found[name].append(next(streams[name]).to("cpu"))
    return found


def stepped(run, batches):
    """The gradients right before the optimizer moves, by name."""
    seen, step = {}, run.engine.step

    def watched(rates):
        for name, weight in run.engine.module.named_parameters():
            seen[name] = torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
        return step(rates)

    run.engine.step = watched
    plan = tasks_of_step(run.resolved, run.progress.step)
    train_step(run, plan, {name: iter(own) for name, own in batches.items()}, MetricSums(), Stopwatch())
    run.engine.step = step
    return seen


def weigh_anew(run):
    """Weights of a transformer that has learned."""
    balancing = run.engine.module.balancing
    assert isinstance(balancing, MELTR)
    torch.manual_seed(4)
    torch.nn.init.normal_(balancing.network.read.weight)
    balancing.learned(torch.tensor([2.0, 5.0, 3.0, 2.0]), torch.ones(4).bool())
    return balancing


def expected(run, batches, balancing):
    """The transformer's gradient and the model's from the gradient of each loss of each micro-batch."""
    model, names = run.engine.module, [f"{task}/{part}" for task, part in balancing.parts]
    own = [each for name, each in model.named_parameters() if not name.startswith("balancing.")]
    ahead, mean, values = torch.zeros(()), {name: torch.zeros(()) for name in names}, torch.zeros(len(names))
    total, ours = torch.zeros(()), dict.fromkeys(names, torch.zeros(()))
    for task, all_of_task in batches.items():
        half = len(all_of_task) // 2
        for i, batch in enumerate(all_of_task):
            for number, (part, loss) in enumerate(model(batch).parts.items()):
                gradient = torch.cat(
                    [
                        each.reshape(-1)
                        for each in torch.autograd.grad(
                            loss, own, retain_graph=True, allow_unused=True, materialize_grads=True
                        )
                    ]
                )
                place = names.index(f"{task}/{part}")
                values[place] += loss.detach() / len(all_of_task)
                total = total + balancing.weights[place] * gradient / len(all_of_task)
                if i < half and number == 0:
                    ahead = ahead + balancing.first_weight(task) * gradient / half
                elif i >= half:
                    mean[names[place]] = mean[names[place]] + gradient / (len(all_of_task) - half)
    ours = torch.stack([mean[name] @ ahead for name in names]) / (ahead @ ahead)
    given = torch.ones(len(names)).bool()
    network = list(balancing.network.parameters())
    outer = torch.autograd.grad(balancing.outer_loss(values, ours, given), network)
    norm = torch.stack([each.norm() for each in outer]).norm()
    return [each * min(1.0, balancing.clip / norm.item()) for each in outer], total, values


@pytest.mark.own_rounding
def test_an_outer_step_learns_from_products_of_gradients_and_the_model_steps_as_in_any_other(run):
    balancing, batches = weigh_anew(run), batches_of(run)
    outer, inner, values = expected(run, batches, balancing)
    seen = stepped(run, batches)
    assert [part for _, part in balancing.parts] == ["loss", "caption_loss", "contrastive_loss", "loss"]
    names = [name for name, _ in balancing.network.named_parameters()]
    assert max(each.norm() for each in outer) > 1e-3
    for name, wanted in zip(names, outer, strict=True):
        torch.testing.assert_close(seen[f"balancing.network.{name}"], wanted, rtol=1e-3, atol=1e-5)
    model = torch.cat([each.reshape(-1) for name, each in seen.items() if not name.startswith("balancing.")])
    assert (model - inner).norm() <= 1e-4 * inner.norm()
    torch.testing.assert_close(balancing.losses, values)


def test_the_transformer_rests_in_other_steps_and_hooks_are_gone(run):
    balancing, batches = weigh_anew(run), batches_of(run)
    states = []
    for _ in range(3):
        states.append({name: tensor.clone() for name, tensor in run.engine.state_tensors().items()})
        stepped(run, batches)
    states.append(run.engine.state_tensors())
    own = [name for name in states[0] if ".balancing." in name]
    own = [name for name in own if "in_proj_bias" not in name]  # that of keys has a gradient of rounding
    assert any(name.startswith("exp_avg_sq.") for name in own)
    for step, (before, after) in enumerate(zip(states, states[1:], strict=False)):
        moved = {name for name in own if not torch.equal(before[name], after[name])}
        assert moved - {"model.balancing.given"} == (
            set(own) - {"model.balancing.given"} if step % PERIOD == 0 else set()
        ), step
        assert not torch.equal(before["model.backbone.norm.weight"], after["model.backbone.norm.weight"])
    model = run.engine.module
    assert not any(
        each._backward_hooks for part in (model.backbone, model.tasks) for each in part.parameters()
    )
    assert balancing.weights.sum().item() == pytest.approx(balancing.start.sum().item())


def test_what_is_not_a_number_leaves_the_run_as_it_was(run):
    batches, before = batches_of(run), run.engine.state_tensors()
    before = {name: tensor.clone() for name, tensor in before.items()}
    bad = batches["masks"][-1]
    batches["masks"][-1] = replace(bad, images=torch.full_like(bad.images, torch.nan))
    stepped(run, batches)
    after = run.engine.state_tensors()
    assert run.nonfinite[0] == 1
    assert [name for name, tensor in before.items() if not torch.equal(tensor, after[name])] == []


def test_halves_are_ahead_of_one_another(run):
    assert tasks_of_step(run.resolved, 0) == (
        *("digits", "captions", "masks"),
        *("digits", "digits", "captions", "masks"),
    )


@pytest.mark.parametrize(
    "period, alternate, due",
    [(3, None, [0, 3, 6]), (1, None, [*range(9)]), (3, 3, [0, 3, 6]), (2, 2, [0, 2, 4, 6, 8])],
)
def test_it_learns_in_the_first_step_of_each_period_that_trains_the_model(period, alternate, due):
    """Embeddings learn in every `alternate`-th step, alone."""
    made = MELTR({"a": 1.0, "b": 1.0}, width=8, heads=2, period=period)
    bilevel = Bilevel(
        made, [], {"a": 2, "b": 2}, lambda step: alternate is None or step % alternate != alternate - 1
    )
    assert [step for step in range(9) if bilevel.due(step)] == due
    kinds = frozenset({BASE, HEAD, BALANCE})
    assert [step for step in range(9) if BALANCE in bilevel.trains(step, kinds)] == due
    assert all(bilevel.trains(step, kinds) >= {BASE, HEAD} for step in range(9))


def test_four_steps_equal_two_saved_loaded_and_two(digits, tmp_path):
    """The transformer, its moments, and the weights, losses and steps that it took them at. In embeddings'
    steps the price of merges is the loss, which is combined with nothing."""

    def sections(**more):
        return dict(
            backbone=dict(drop_path=0.1, grad_checkpointing=True),
            merging=dict(policy="dtem", reduction=2),
            objective=dict(type="merge_cost"),
            train=dict(mode="end_to_end", alternate_period=3, steps=4, log_every=1) | more,
            balancing=BY_MELTR | dict(every=2),
        )

    kept = sections(save_every=2, keep_checkpoints=5)
    train(from_plain(plain_of(digits, tmp_path / "whole", **kept)), "none")
    half = tmp_path / "whole/checkpoints/step_00000002"
    torch.manual_seed(7)
    train(from_plain(plain_of(digits, tmp_path / "parts", **sections())), str(half))
    ends = [read_checkpoint(tmp_path / name / "checkpoints/step_00000004") for name in ("whole", "parts")]
    assert ends[0].tensors.keys() == ends[1].tensors.keys()
    differing = [
        name for name, each in ends[0].tensors.items() if not torch.equal(each, ends[1].tensors[name])
    ]
    assert differing == []
    own = [name for name in ends[0].tensors if ".balancing." in name]
    assert {name.split(".")[0] for name in own} == {"model", "exp_avg", "exp_avg_sq", "step"}
    steps = {ends[0].tensors[name].item() for name in own if name.startswith("step.")}
    assert steps == {2.0}, "in steps 0 and 3; of which the first of a period trains embeddings"
    lines = list(map(json.loads, (tmp_path / "whole/metrics.jsonl").read_text().splitlines()))
    assert "captions/weight/contrastive_loss" in lines[0] and "digits/weight" in lines[1]


@pytest.mark.parametrize(
    "sections, message",
    [
        (
            dict(engine=dict(type="fsdp", accumulation=2)),
            "whole parameters, and with engine.type='fsdp' no rank",
        ),
        (
            dict(engine=dict(type="deepspeed", zero_stage=3)),
            "and with engine.zero_stage=3 no rank holds such",
        ),
        (dict(engine=dict(compile="blocks")), "which goes back through a graph once for each loss"),
        (dict(mixing=dict(mode="sampled")), "balancing.type is 'meltr', which compares the tasks' gradients"),
        (
            dict(tasks=dict(masks=dict(accumulation=1))),
            "tasks.masks has one; give tasks.masks.accumulation=2, or engine.accumulation=2 .with "
            "tasks.masks.data.batch_size=1",
        ),
        (dict(train=dict(mode="heads")), "'meltr', but in train.mode='heads' the tasks share nothing"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name_before_the_start(sections, message, digits, tmp_path):
    with pytest.raises(ConfigError, match=message):
        build_run(from_plain(plain_of(digits, tmp_path / "run", **sections)), "none")
    assert not (tmp_path / "run").exists()
