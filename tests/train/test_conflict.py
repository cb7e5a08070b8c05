"""Each task's gradient on what the tasks share, against autograd asked for one task at a time."""

import copy
import gc
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
import torch
from names import owner_of
from ranks import ONE_RANK, together
from tiny import images, tiny_vit
from tinyrun import tiny_tasks_plain
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.backbone.metric import EmbeddingSpec
from pipeline.balancing import BALANCING
from pipeline.config.load import from_plain
from pipeline.data.targets import ClassificationTargets
from pipeline.interfaces import Batch, TaskOutput
from pipeline.model import TASKS, MultiTaskModel, build_model
from pipeline.objectives import OBJECTIVES
from pipeline.parts import set_trainable
from pipeline.train.conflict import GradientProbe, build_probe
from pipeline.train.gate import GradientGate
from pipeline.train.groups import parameter_groups
from pipeline.train.loop import train
from pipeline.train.steps import build_procedure
from pipeline.train.storage import read_checkpoint

WEIGHTS = {"cats": 1.0, "dogs": 0.25, "cows": 3.0}


@pytest.fixture
def model():
    backbone = tiny_vit("dtem", embedding=EmbeddingSpec("adapter", tuple(WEIGHTS)))
    tasks = {name: TASKS.build("classification", backbone, num_classes=3) for name in WEIGHTS}
    return MultiTaskModel(
        backbone, tasks, OBJECTIVES.build("supervised"), balancing=BALANCING.build("fixed", WEIGHTS)
    ).train()


def batch(task, number=0, size=3):
    seed = 10 * list(WEIGHTS).index(task) + number
    return Batch(task, images(size, seed=seed), ClassificationTargets(torch.arange(size) % 3), ("",) * size)


def shared_of(model):
    return [parameter for name, parameter in model.named_parameters() if owner_of(name) is None]


def probe_of(model, tasks=tuple(WEIGHTS), every=1):
    return GradientProbe(tasks, shared_of(model), every, lambda step: True)


def step(model, probe, plan, number=0, watched=True):
    """A step's backward passes; plan: the tasks of its micro-batches."""
    counts: Counter[str] = Counter()
    for task in plan:
        output, share = model(batch(task, number + counts[task])), 1 / plan.count(task)
        counts[task] += 1
        if watched:
            probe.watch(task, output, share)
        (output.loss * share).backward()


def gradient(model, task, numbers=(0,)):
    """[D] of the weighed mean loss of the task's micro-batches, and that loss before it was weighed."""
    outputs = [model(batch(task, number)) for number in numbers]
    loss = sum(output.loss for output in outputs) / len(numbers)
    parts = torch.autograd.grad(loss, shared_of(model), materialize_grads=True)
    return torch.cat([part.flatten() for part in parts]), loss.detach() / WEIGHTS[task]


def assert_measured(found, gradients):
    """gradients: of each task, as `gradient` gives them."""
    assert found.tasks == tuple(gradients)
    # a norm in float32 is off by 4e-6 on a CPU
    vectors = torch.stack([vector for vector, _ in gradients.values()]).double()
    units = vectors / vectors.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found.norms, vectors.norm(dim=1).float())
    torch.testing.assert_close(found.cosines, (units @ units.T).float(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.losses, torch.stack([loss for _, loss in gradients.values()]))


def hooks(model):
    return sum(len(parameter._backward_hooks or ()) for parameter in model.parameters())


def vectors_like(model) -> int:
    """How many tensors of as many numbers as all that is shared are in memory."""
    size = sum(parameter.numel() for parameter in shared_of(model))
    return sum(type(each) is torch.Tensor and each.numel() == size for each in gc.get_objects())


@pytest.mark.parametrize("counts", [(1, 1, 1), (2, 1, 3)])
def test_norms_cosines_and_losses_are_those_of_autograd(model, counts):
    probe = probe_of(model)
    assert probe.due(0)
    step(model, probe, [task for task, count in zip(WEIGHTS, counts, strict=True) for _ in range(count)])
    found = probe.read(ONE_RANK)
    assert_measured(
        found,
        {task: gradient(model, task, range(count)) for task, count in zip(WEIGHTS, counts, strict=True)},
    )


def test_watching_leaves_the_gradients_as_they_are_and_no_hooks_behind(model):
    parameters = dict(model.named_parameters())
    plan = [*WEIGHTS, "dogs"]
    step(model, None, plan, watched=False)
    plain = {
        name: parameter.grad.clone() for name, parameter in parameters.items() if parameter.grad is not None
    }
    model.zero_grad()
    probe = probe_of(model)
    probe.due(0)
    step(model, probe, plan)
    assert hooks(model) == len(shared_of(model)) and vectors_like(model)
    assert all(torch.equal(parameters[name].grad, gradient) for name, gradient in plain.items())
    assert probe.read(ONE_RANK) is not None and hooks(model) == 0
    assert not vectors_like(model), "no memory is held between measurements"


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that is made, views not counted."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(args) if isinstance(leaf, Tensor)}
        for each in (leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)):
            if each.untyped_storage().data_ptr() not in given:
                self.size = max(self.size, each.numel())
        return made


def test_a_measurement_copies_no_more_than_one_parameter_of_each_task(model):
    probe, sizes = probe_of(model), [parameter.numel() for parameter in shared_of(model)]
    probe.due(0)
    step(model, probe, list(WEIGHTS))
    with Largest() as largest:
        probe.read(ONE_RANK)
    assert largest.size == len(WEIGHTS) * max(sizes) < sum(sizes)


def test_a_measurement_over_sampled_steps_is_there_when_all_tasks_were_seen_and_takes_the_first_step_of_each(
    model,
):
    probe, found = probe_of(model, every=100), None
    for number, task in enumerate(["dogs", "dogs", "cats", "dogs", "cows"]):
        assert found is None and probe.due(number)
        step(model, probe, [task, task], 2 * number)
        found = probe.read(ONE_RANK)
        assert hooks(model) == 0
    assert_measured(
        found,
        {
            task: gradient(model, task, (number, number + 1))
            for task, number in [("cats", 4), ("dogs", 0), ("cows", 8)]
        },
    )
    assert not probe.due(5)


def test_two_ranks_measure_the_gradient_of_their_mean_loss(model):
    models = model, copy.deepcopy(model)
    probes = [probe_of(each) for each in models]
    for number, (each, probe) in enumerate(zip(models, probes, strict=True)):
        probe.due(0)
        step(each, probe, list(WEIGHTS), number)
    for found in together(2, lambda rank, ranks: probes[rank].read(ranks)):
        assert_measured(found, {task: gradient(model, task, (0, 1)) for task in WEIGHTS})


def test_a_task_that_shares_nothing_has_norm_and_cosine_0(model):
    probe = probe_of(model)
    model.zero_grad()
    probe.due(0)
    step(model, probe, ["cats", "dogs"])
    output = model(batch("cows"))
    probe.watch("cows", output, 1.0)
    (output.loss * 0).backward()
    found = probe.read(ONE_RANK)
    assert found.norms[2] == 0 and found.cosines[2].abs().max() == 0 and found.cosines.isfinite().all()


def test_logs_name_tasks_and_pairs(model):
    probe = probe_of(model)
    probe.due(0)
    step(model, probe, list(WEIGHTS))
    found = probe.read(ONE_RANK)
    pairs = {f"grad_cosine/{first}/{second}" for first, second in combinations(WEIGHTS, 2)}
    logs = found.logs()
    assert set(logs) == {f"grad_norm/{task}" for task in WEIGHTS} | pairs
    assert all(count == 1 for _, count in logs.values())
    assert (
        logs["grad_cosine/cats/cows"][0] == found.cosines[0, 2]
        and logs["grad_norm/dogs"][0] == found.norms[1]
    )


def tiny_probe(**sections):
    """The probe of a run, and its model."""
    config = from_plain(tiny_tasks_plain(Path("-"), Path("-"), **sections))
    model = build_model(config)
    set_trainable(model, config.train.mode)
    groups, procedure = parameter_groups(model, config), build_procedure(config)
    return build_probe(config, groups, list(config.tasks), lambda step: procedure.spec(step).trains), model


def measure(probe, model, parameter):
    """A whole measurement, in which each task's loss is the sum of one parameter's weights."""
    for task in model.tasks:
        loss = parameter.sum()
        probe.watch(task, TaskOutput(loss, unweighed=loss.detach()), 1.0)
        loss.backward()
    return probe.read(ONE_RANK)


def measured_on(probe, model) -> set[str]:
    """The parameters whose gradients are in the norms."""
    probe.due(0)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name for name, parameter in trained.items() if measure(probe, model, parameter).norms.min() > 0}


@pytest.mark.parametrize("embedding", ["shared", "per_task", "adapter"])
@pytest.mark.parametrize("balancing", BALANCING.names())
def test_it_measures_on_what_no_task_owns(embedding, balancing):
    shared = measured_on(*tiny_probe(merging={"embedding": embedding}, balancing={"type": balancing}))
    assert not any(owner_of(name) or name.startswith("balancing.") for name in shared)
    assert any(".metric." in name for name in shared) == (embedding != "per_task")
    assert "backbone.norm.weight" in shared


@pytest.mark.parametrize(
    "sections",
    [
        {"balancing": {"every": 0}},
        {"train": {"mode": "heads"}},
        {"train": {"mode": "modular"}, "merging": {"embedding": "per_task"}},
    ],
)
def test_where_nothing_is_shared_or_wanted_there_is_no_probe(sections):
    assert tiny_probe(**sections)[0] is None


@pytest.mark.parametrize("first", range(8))
def test_alternating_training_is_measured_where_the_backbone_moves(first):
    """At the first such step from each multiple of `every` on, wherever a run is resumed."""
    probe, model = tiny_probe(train={"mode": "end_to_end", "alternate_period": 3}, balancing={"every": 5})
    assert not any(".metric." in name for name in measured_on(probe, model))
    due = []
    for number in range(first, 24):
        if probe.due(number):
            due.append(number)
            assert measure(probe, model, model.backbone.norm.weight) is not None
    assert due == [step for step in (0, 6, 10, 15, 21) if step >= first]


def test_a_closed_gate_is_seen_as_closed(model):
    """The probe measures what the step will move."""
    groups = [{"kind": "base", "params": shared_of(model)}]
    gate, probe = GradientGate(groups, torch.device("cpu")), probe_of(model)
    gate.open(frozenset())
    probe.due(0)
    step(model, probe, list(WEIGHTS))
    assert probe.read(ONE_RANK).norms.abs().max() == 0


def test_a_run_learns_the_same_however_often_it_is_measured(digits, tmp_path):
    for every in (0, 2):
        plain = tiny_tasks_plain(
            digits, tmp_path / str(every), balancing={"every": every}, train={"steps": 4, "log_every": 1}
        )
        for task in plain["tasks"].values():
            task["data"] |= {"val": None}
        train(from_plain(plain))
    ends = [read_checkpoint(tmp_path / every / "checkpoints/step_00000004").tensors for every in ("0", "2")]
    assert all(torch.equal(ends[0][name], tensor) for name, tensor in ends[1].items())
    lines = [(tmp_path / every / "metrics.jsonl").read_text().splitlines() for every in ("0", "2")]
    assert ["grad_norm/masks" in line for line in lines[0]] == [False] * 4
    assert ["grad_cosine/captions/masks" in line for line in lines[1]] == [True, False, True, False]
