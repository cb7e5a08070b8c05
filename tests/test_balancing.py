"""How losses are weighed: what every balancing promises, and the formulas of each."""

import math

import pytest
import torch

from pipeline.balancing import BALANCING, build_balancing
from pipeline.config.schema import BalancingConfig
from pipeline.errors import ConfigError

ANY = pytest.mark.parametrize("kind", BALANCING.names())
WEIGHTS = [{"a": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 2.0, "b": 0.5, "c": 1.0}]


def balanced(balancing, task, value=3.0):
    """The part of what is minimised, its derivative by the loss, and the weight that is reported."""
    loss = torch.tensor(value, requires_grad=True)
    part, weight = balancing(task, loss)
    return part, torch.autograd.grad(part, loss, retain_graph=True)[0], weight


def move(balancing, steps=5):
    """A few steps in which the tasks differ in loss and gradient."""
    values = torch.arange(1.0, 1 + len(balancing.names))
    optimizer = torch.optim.SGD(balancing.parameters(), lr=0.1) if list(balancing.parameters()) else None
    for step in range(steps):
        if optimizer is not None:
            optimizer.zero_grad()
            minimised(balancing, values).backward()
            optimizer.step()
        balancing.follow(values.flip(0), values / (step + 1))
        if balancing.combines:
            balancing.learned(values / (step + 1), torch.ones(len(values)).bool())


def minimised(balancing, values):
    """What its own parameters go down."""
    if balancing.combines:
        return balancing.outer_loss(values, values.flip(0), torch.ones(len(values)).bool())
    return sum(balancing(task, value)[0] for task, value in zip(balancing.names, values, strict=True))


@ANY
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("value", [1e-6, 3.0, 1e5])
def test_it_starts_as_the_weights_that_are_given(kind, weights, value):
    for task, weight in weights.items():
        part, slope, reported = balanced(BALANCING.build(kind, weights), task, value)
        assert part.isfinite() and part.shape == () and slope == weight
        assert reported is None or (reported == weight and not reported.requires_grad)


@ANY
def test_the_reported_weight_is_what_the_gradient_is_multiplied_by(kind):
    balancing = BALANCING.build(kind, WEIGHTS[2])
    move(balancing)
    for task in balancing.names:
        part, slope, reported = balanced(balancing, task)
        assert part.isfinite() and slope > 0
        assert slope == (reported if reported is not None else WEIGHTS[2][task])


@ANY
@pytest.mark.parametrize("weights", WEIGHTS[:2])
def test_equal_tasks_stay_equal_and_keep_their_sum(kind, weights):
    balancing, ones = BALANCING.build(kind, weights), torch.ones(len(weights))
    for step in range(20):
        balancing.follow(0.3 * ones, ones / (step + 1))
    assert [balanced(balancing, task)[1].item() for task in weights] == pytest.approx([1.0] * len(weights))


@ANY
def test_what_moves_is_in_its_state(kind):
    one, other = (BALANCING.build(kind, WEIGHTS[2]) for _ in range(2))
    move(one)
    other.load_state_dict(one.state_dict())
    for _ in range(2):
        assert [balanced(one, task)[:2] for task in one.names] == [
            balanced(other, task)[:2] for task in one.names
        ]
        move(one), move(other)


@ANY
def test_a_backward_pass_outlives_a_measurement(kind):
    """Weights that move in place must not spoil a graph that still needs them."""
    balancing = BALANCING.build(kind, WEIGHTS[2])
    loss = torch.tensor(3.0, requires_grad=True)
    part, _ = balancing("a", loss)
    balancing.follow(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0]))
    part.backward()
    assert loss.grad == WEIGHTS[2]["a"]


@ANY
def test_an_option_it_does_not_know_is_refused(kind):
    with pytest.raises(ConfigError, match=kind):
        build_balancing(BalancingConfig(type=kind, options={"nope": 1}), WEIGHTS[2])


def test_an_unknown_type_is_refused():
    with pytest.raises(ConfigError, match="unknown balancing 'uncertain'; did you mean 'uncertainty'"):
        build_balancing(BalancingConfig(type="uncertain"), WEIGHTS[0])


def test_fixed_is_the_weight_times_the_loss_whatever_is_measured():
    fixed = BALANCING.build("fixed", WEIGHTS[2])
    move(fixed)
    assert [fixed(task, torch.tensor(3.0)) for task in "abc"] == [(6.0, None), (1.5, None), (3.0, None)]
    assert not fixed.state_dict()


@pytest.mark.parametrize("s", [-1.5, 0.0, 0.7])
@pytest.mark.parametrize("value", [0.2, 3.0])
def test_uncertainty_is_its_formula_and_so_is_the_gradient_of_s(s, value):
    uncertainty = BALANCING.build("uncertainty", WEIGHTS[2])
    parameters = dict(uncertainty.named_parameters())
    assert set(parameters) == {"log_variance.a", "log_variance.b", "log_variance.c"}
    for task, weight in WEIGHTS[2].items():
        own = parameters[f"log_variance.{task}"]
        own.data.fill_(s)
        part, slope, reported = balanced(uncertainty, task, value)
        part.backward()
        assert part.item() == pytest.approx(weight * (math.exp(-s) * value + s / 2))
        assert slope.item() == reported.item() == pytest.approx(weight * math.exp(-s))
        assert own.grad.item() == pytest.approx(weight * (0.5 - math.exp(-s) * value), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("value", [0.05, 0.5, 40.0])
def test_uncertainty_is_least_where_the_variance_is_twice_the_loss(value):
    """There each task's weighed loss is half its weight, whatever its unit."""
    uncertainty = BALANCING.build("uncertainty", WEIGHTS[2])
    optimizer = torch.optim.LBFGS(uncertainty.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        total = sum(uncertainty(task, torch.tensor(value))[0] for task in uncertainty.names)
        total.backward()
        return total

    optimizer.step(closure)
    for task, weight in WEIGHTS[2].items():
        assert uncertainty.log_variance[task].exp().item() == pytest.approx(2 * value, rel=1e-3)
        assert balanced(uncertainty, task, value)[2].item() * value == pytest.approx(weight / 2, rel=1e-3)


def of_norms(weights=None, **options):
    return BALANCING.build("gradient_norm", weights or WEIGHTS[1], **options)


def weights_of(balancing):
    return torch.stack([balanced(balancing, task)[1] for task in balancing.names])


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradient_norms_come_together_in_the_ratio_of_the_weights(weights, momentum):
    balancing, own = of_norms(weights, momentum=momentum), torch.tensor([30.0, 0.4, 5.0])[: len(weights)]
    for _ in range(100):
        balancing.follow(weights_of(balancing) * own, torch.ones(len(own)))
        assert weights_of(balancing).sum().item() == pytest.approx(sum(weights.values()), rel=1e-4)
    shares = weights_of(balancing) * own / torch.tensor(list(weights.values()))
    torch.testing.assert_close(shares / shares.mean(), torch.ones(len(own)), atol=1e-3, rtol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_a_task_that_learns_slower_is_given_more(alpha):
    balancing = of_norms(alpha=alpha, momentum=0.0)
    balancing.follow(torch.ones(3), torch.tensor([1.0, 10.0, 5.0]))
    balancing.follow(
        weights_of(balancing), torch.tensor([1.0, 5.0, 1.25])
    )  # what is left of them: 1, 1/2, 1/4
    weights = weights_of(balancing)
    torch.testing.assert_close(weights / weights[0], torch.tensor([1.0, 0.5, 0.25]) ** alpha)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("measured", ["norms", "losses"])
@pytest.mark.parametrize("first", [True, False])
def test_a_measurement_that_is_not_finite_changes_nothing(bad, measured, first):
    balancing, usual = (
        of_norms(),
        {"norms": torch.tensor([1.0, 2.0, 3.0]), "losses": torch.tensor([3.0, 2.0, 1.0])},
    )
    if not first:
        balancing.follow(**usual)
    before = {name: tensor.clone() for name, tensor in balancing.state_dict().items()}
    balancing.follow(**usual | {measured: torch.tensor([1.0, bad, 2.0])})
    assert all(torch.equal(tensor, before[name]) for name, tensor in balancing.state_dict().items())


def test_the_first_losses_are_kept_whatever_their_sign():
    balancing = of_norms()
    balancing.follow(torch.ones(3), torch.tensor([-1.0, 0.0, 2.0]))
    balancing.follow(torch.ones(3), torch.tensor([-5.0, 4.0, 1.0]))
    assert balancing.first.tolist() == [-1.0, 4.0, 2.0], "what is 0 cannot be divided by"


@pytest.mark.parametrize("norm", [0.0, 1e-30])
def test_a_task_without_a_gradient_does_not_take_everything(norm):
    balancing = of_norms()
    balancing.follow(torch.tensor([norm, 1.0, 1.0]), torch.ones(3))
    assert weights_of(balancing).isfinite().all() and (weights_of(balancing) > 0).all()


@pytest.mark.parametrize("options", [{"alpha": -0.1}, {"momentum": 1.0}, {"momentum": -0.5}])
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(ConfigError, match="gradient_norm: alpha .* must be 0 or more, and momentum"):
        of_norms(**options)
