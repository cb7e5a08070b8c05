"""Metric embeddings of several tasks: all kinds are one linear layer for a task, and a task's own part
touches no other."""

import pytest
import torch
from names import owner_of
from tiny import images, tiny_vit
from torch.nn import functional as F

from pipeline.backbone.metric import EMBEDDINGS, EmbeddingSpec, MetricEmbedding
from pipeline.backbone.weights.load import load_weights
from pipeline.errors import CheckpointError, ConfigError
from pipeline.merging.unmerge import slots

TASKS = ("a", "b", "c")
OWN = [kind for kind in EMBEDDINGS if kind != "shared"]
ANY = pytest.mark.parametrize("kind", EMBEDDINGS)
OF_TASKS = pytest.mark.parametrize("kind", OWN)


def shaken(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def vit(kind, seed=0, tasks=TASKS, rank=4):
    return tiny_vit("dtem", seed=seed, embedding=EmbeddingSpec(kind, tasks, rank)).eval()


def merged(model, task):
    """[B, N]: which slot each patch went to."""
    return slots(model(images(), task=task).final)


@ANY
def test_an_embedding_is_the_linear_layer_that_it_folds_to(kind):
    layer, x = shaken(EmbeddingSpec(kind, TASKS, 3).build(12, 5)), torch.randn(2, 7, 12)
    for task in TASKS:
        folded = layer.fold(task)
        assert (folded["weight"].shape, folded["bias"].shape) == ((5, 12), (5,))
        torch.testing.assert_close(layer(x, task), F.linear(x, **folded), atol=1e-6, rtol=1e-5)
    assert layer.out_features == 5 and layer.weight.shape == (5, 12)


@ANY
def test_tasks_differ_where_they_have_a_part_of_their_own(kind):
    layer, x = shaken(EmbeddingSpec(kind, TASKS, 3).build(12, 5)), torch.randn(2, 7, 12)
    assert torch.equal(layer(x, "a"), layer(x, "b")) == (kind == "shared")


def test_an_adapter_starts_as_the_shared_embedding_and_is_of_its_rank():
    layer = EmbeddingSpec("adapter", TASKS, 2).build(12, 5)
    shared, x = MetricEmbedding(12, 5), torch.randn(2, 7, 12)
    shared.load_state_dict({name: layer.state_dict()[name] for name in ("weight", "bias")})
    assert all(torch.equal(layer(x, task), shared(x)) for task in TASKS)
    layer = shaken(layer)
    changes = [layer.fold(task)["weight"] - layer.weight for task in TASKS]
    assert [int(torch.linalg.matrix_rank(change)) for change in changes] == [2, 2, 2]


def test_an_adapter_learns_from_its_start():
    layer = EmbeddingSpec("adapter", TASKS).build(12, 5)
    layer(torch.randn(2, 7, 12), "b").square().mean().backward()
    moved = {
        owner_of(name)
        for name, parameter in layer.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    assert moved == {None, "b"}


@OF_TASKS
def test_a_tasks_part_changes_its_own_merge_alone(kind):
    model = vit(kind)
    before = {task: merged(model, task) for task in TASKS}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if owner_of(name) == "b":
                parameter.normal_()
    assert {task for task in TASKS if not torch.equal(before[task], merged(model, task))} == {"b"}


@OF_TASKS
def test_a_task_gets_gradient_in_its_own_part_alone(kind):
    model = shaken(vit(kind)).train()
    model(images(), task="b").final.tokens.square().sum().backward()
    reached = {owner_of(name) for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {None, "b"}


@OF_TASKS
@pytest.mark.parametrize("task", [None, "d", "forward", ""])
def test_a_task_without_a_part_is_a_mistake_that_names_those_that_have_one(kind, task):
    with pytest.raises(ConfigError, match=f"a part for each of a, b, c, not for {task!r}"):
        vit(kind)(images(), task=task)


@pytest.mark.parametrize("policy", ["none", "tome", "random"])
@ANY
def test_a_policy_without_an_embedding_asks_for_no_task(kind, policy):
    model = tiny_vit(policy, embedding=EmbeddingSpec(kind, TASKS))
    assert not any(".metric." in name for name, _ in model.named_parameters())
    assert model(images()).final.tokens.isfinite().all()


@pytest.mark.parametrize(
    "spec, part",
    [
        (("own", TASKS), "is 'own'; give one of shared, per_task, adapter"),
        (("per_task",), "name the tasks"),
        (("adapter",), "name the tasks"),
    ],
)
def test_a_kind_that_cannot_be_is_refused(spec, part):
    with pytest.raises(ConfigError, match=part):
        EmbeddingSpec(*spec)


@ANY
def test_every_kind_starts_from_a_shared_one(kind):
    shared, model = vit("shared", seed=3), vit(kind, seed=4)
    report = load_weights(model, shared.state_dict())
    assert all(".adapters." in name for name in report.missing) and not report.left
    for task in TASKS:
        for mine, theirs in zip(model.blocks, shared.blocks, strict=True):
            assert all(
                torch.equal(tensor, theirs.metric.state_dict()[name])
                for name, tensor in mine.metric.fold(task).items()
            )
        assert torch.equal(merged(model, task), merged(shared, None))


@OF_TASKS
def test_parts_of_tasks_are_found_by_name_and_a_new_task_keeps_its_own(kind):
    old, new = shaken(vit(kind, seed=3, tasks=("a", "b"))), vit(kind, seed=4, tasks=("b", "c"))
    own = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    report = load_weights(new, old.state_dict())
    assert {owner_of(name) for name in report.missing} == {"c"} and {
        owner_of(name) for name in report.left
    } == {"a"}
    for name, tensor in new.state_dict().items():
        assert torch.equal(tensor, own[name] if owner_of(name) == "c" else old.state_dict()[name])


def test_an_adapter_of_another_rank_is_refused():
    with pytest.raises(CheckpointError, match="another architecture"):
        load_weights(vit("adapter", rank=4), vit("adapter", rank=2).state_dict())
