"""MELTR: the loss transformer, the weights that its slopes give, and the gradient by which it learns."""

import pytest
import torch

from pipeline.balancing import BALANCING, build_balancing
from pipeline.config.schema import BalancingConfig
from pipeline.errors import ConfigError
from pipeline.loss_transformer import LossTransformer, outer_loss

WEIGHTS = {"a": 2.0, "b": 0.5}
LOSSES = {"a": ("caption", "contrast"), "b": ("loss",)}
START = torch.tensor([2.0, 2.0, 0.5])
ALL = torch.ones(3).bool()
SMALL = dict(width=8, heads=2)


def network(num_losses=3, seed=0):
    """One that has learned, in float64."""
    torch.manual_seed(seed)
    made = LossTransformer(num_losses, **SMALL).double()
    torch.nn.init.normal_(made.read.weight)
    return made


def balancing(seed=0, **options):
    torch.manual_seed(seed)
    return BALANCING.build("meltr", WEIGHTS, LOSSES, **SMALL | options)


def learned(seed=0, **options):
    made = balancing(seed, **options)
    torch.nn.init.normal_(made.network.read.weight)
    made.learned(torch.tensor([1.0, 3.0, 0.2]), ALL)
    return made


def losses_at(w):
    """Three losses [3] of parameters w [4], none of them a function of another."""
    return torch.stack([(w - 1).square().sum(), (w[:2] * w[2:]).sum().exp(), (w.sin() + 2).prod() / 8])


def test_two_squares_that_pull_apart_have_the_gradient_of_the_paper():
    """(w - 1)^2 is to fall, and (w + 1)^2 is beside it, under phi_1 l_1 + phi_2 l_2, at w = 0."""
    w, phi = torch.zeros((), requires_grad=True), torch.tensor([0.3, 0.7], requires_grad=True)
    slopes = [torch.autograd.grad(loss, w)[0] for loss in ((w - 1) ** 2, (w + 1) ** 2)]
    products = torch.stack([slope * slopes[0] for slope in slopes])
    outer_loss(phi, products).backward()
    assert phi.grad.tolist() == [-4.0, 4.0], "going down it raises the first weight and lowers the second"


def test_the_hypergradient_is_that_of_two_backward_passes_and_of_a_difference():
    """The product of a parameter's gradients, which a step needs no second derivative for, is what the double
    backward pass through the model and the difference of two passes give."""
    net, w = network(), torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=torch.float64)
    parameters = list(net.parameters())

    def combined(point):
        return net(losses_at(point), ALL)

    ahead = torch.autograd.functional.jacobian(lambda point: losses_at(point)[0], w + 0.1)
    jacobian = torch.autograd.functional.jacobian(losses_at, w)
    losses = losses_at(w).requires_grad_()
    (slopes,) = torch.autograd.grad(net(losses, ALL), losses, create_graph=True)
    options = dict(allow_unused=True, materialize_grads=True)  # the last bias moves no slope
    ours = torch.autograd.grad(outer_loss(slopes, jacobian @ ahead), parameters, **options)

    point = w.clone().requires_grad_()
    (inner,) = torch.autograd.grad(combined(point), point, create_graph=True)
    twice = torch.autograd.grad(-(inner * ahead).sum(), parameters, **options)
    step = 1e-5
    there, back = (torch.autograd.grad(combined(w + sign * step * ahead), parameters) for sign in (1, -1))
    for mine, exact, plus, minus in zip(ours, twice, there, back, strict=True):
        torch.testing.assert_close(mine, exact)
        difference = -(plus - minus) / (2 * step)
        assert (mine - difference).norm() <= 1e-3 * difference.norm() + 1e-8
    assert max(gradient.norm() for gradient in ours) > 1e-3


def test_losses_are_told_apart_by_what_is_learned_of_each_alone():
    net, losses, order = network(), torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64), [2, 0, 1]
    assert not torch.isclose(net(losses, ALL), net(losses[order], ALL), rtol=1e-3)
    with torch.no_grad():
        net.which.zero_()
    torch.testing.assert_close(net(losses, ALL), net(losses[order], ALL))


def test_a_loss_that_is_not_there_changes_nothing():
    net, given = network(), torch.tensor([True, False, True])
    values = [torch.tensor([0.4, other, 2.0], dtype=torch.float64) for other in (0.0, 1e6)]
    torch.testing.assert_close(net(values[0], given), net(values[1], given))
    assert not torch.isclose(net(values[0], ALL), net(values[1], ALL), rtol=1e-3)
    assert net(values[0], torch.zeros(3).bool()) == 0


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e8])
def test_losses_of_any_size_are_read(scale):
    losses = (scale * torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)).requires_grad_()
    (slopes,) = torch.autograd.grad(network()(losses, ALL), losses)
    assert slopes.isfinite().all() and slopes.any()


def test_it_starts_as_the_weights_that_are_given_whatever_the_losses():
    made = balancing()
    for losses in (torch.tensor([1.0, 3.0, 0.2]), torch.tensor([1e4, 0.0, -2.0])):
        made.learned(losses, ALL)
        assert torch.equal(made.weights, START)


def test_weights_depend_on_all_losses_and_keep_their_sum():
    made = learned()
    before = made.weights.clone()
    assert not torch.allclose(before, START, rtol=1e-2)
    assert before.sum().item() == pytest.approx(START.sum().item())
    made.learned(torch.tensor([1.0, 3.0, 7.0]), ALL)
    assert not torch.allclose(made.weights[:2], before[:2], rtol=1e-3), "the third loss alone has changed"


def test_no_weight_falls_to_nothing_and_the_lowest_can_rise():
    made = learned(least=0.25)
    with torch.no_grad():
        made.network.read.weight.mul_(100)
    made.learned(made.losses.clone(), ALL)
    shares = made.weights / START
    assert (shares > 0).all() and shares.min() < 0.25
    lowest = int(shares.argmin())
    products = torch.zeros(3)
    products[lowest] = 1.0
    made.outer_loss(made.losses, products, ALL).backward()
    assert made.network.read.weight.grad.norm() > 0


def test_a_loss_never_seen_keeps_its_weight_and_one_of_earlier_its_value():
    made, first = balancing(), torch.tensor([True, False, True])
    torch.nn.init.normal_(made.network.read.weight)
    made.learned(torch.tensor([1.0, 9.0, 0.2]), first)
    assert made.weights[1] == START[1] and made.losses[1] == 0
    made.learned(torch.tensor([0.0, 2.0, 0.0]), ~first)
    torch.testing.assert_close(made.losses, torch.tensor([1.0, 2.0, 0.2]))
    assert made.given.tolist() == [1.0, 1.0, 1.0] and made.weights[1] != START[1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_change_nothing(bad):
    made = learned()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    made.learned(torch.tensor([1.0, bad, 0.2]), ALL)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())


def test_each_part_of_a_loss_has_its_own_weight_and_what_was_not_named_keeps_its_tasks():
    made = learned()
    parts = {name: torch.tensor(2.0, requires_grad=True) for name in ("caption", "contrast", "new")}
    total, weight = made.weigh("a", torch.tensor(6.0), parts)
    slopes = torch.autograd.grad(total, list(parts.values()))
    assert [slope.item() for slope in slopes] == [made.weights[0].item(), made.weights[1].item(), 2.0]
    assert weight == made.weights[0] and not weight.requires_grad
    assert made.auxiliary_weights() == {"a/weight/contrast": made.weights[1]}


def pulled(gamma, steps=30):
    """The transformer's addition after some steps down the outer loss, at losses that stay."""
    made = balancing(gamma=gamma)
    losses, products = torch.tensor([1.0, 3.0, 0.2]), torch.tensor([1.0, -1.0, 0.5])
    optimizer = torch.optim.AdamW(made.network.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        made.outer_loss(losses, products, ALL).backward()
        optimizer.step()
    made.learned(losses, ALL)
    return made.combined(losses, ALL)[0].abs().item(), made


def test_gradients_along_that_of_the_main_losses_gain_weight():
    _, made = pulled(gamma=0.0)
    shares = made.weights / START
    assert shares[0] > 1.05 and shares[1] < 0.95


def test_a_large_gamma_keeps_the_combination_at_the_sum():
    free, held = (pulled(gamma)[0] for gamma in (0.0, 1e3))
    assert held < 0.2 * free


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(period=0), "period 0 must be 1 or more"),
        (dict(gamma=-0.1), "gamma -0.1 0 or more"),
        (dict(clip=0.0), "clip 0.0 above 0"),
        (dict(least=0.0), "least 0.0 in"),
        (dict(width=9, heads=3), "width 9 must be even"),
        (dict(width=10, heads=4), "divide by heads 4"),
        (dict(primary=["a", "c"]), "primary is .*; give one or more of the tasks that learn, a, b"),
        (dict(primary=[]), "give one or more of the tasks"),
        (dict(losses={"a": ["x"]}), "losses"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build_balancing(BalancingConfig(type="meltr", options=options), WEIGHTS, LOSSES)


def test_one_loss_is_nothing_to_combine():
    with pytest.raises(
        ConfigError, match="combines losses, and the run has one .a.; give .*'fixed', a second"
    ):
        build_balancing(BalancingConfig(type="meltr"), {"a": 1.0}, {"a": ("loss",)})
    assert build_balancing(BalancingConfig(type="meltr"), {"a": 1.0}, {"a": ("x", "y")}).parts == (
        ("a", "x"),
        ("a", "y"),
    )


def test_it_learns_slower_than_a_number_per_task_unless_told():
    assert [BalancingConfig(type=kind).lr for kind in ("meltr", "uncertainty")] == [1e-3, 1e-2]
    assert BalancingConfig(type="meltr", lr=0.5).lr == 0.5
