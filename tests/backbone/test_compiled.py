"""A backbone compiled as a whole or block by block computes the same; no block runs uncompiled without a
word."""

import copy
import json
import logging

import pytest
import torch
from tiny import MERGING, images, tiny_vit
from torch._dynamo.backends.debugging import aot_eager

from pipeline.backbone import compiled
from pipeline.backbone.compiled import Compiled, compile_backbone
from pipeline.errors import ConfigError
from pipeline.train.loop import train


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Counting:
    """A backend that counts its graphs. traced: with their backward passes."""

    def __init__(self, *, traced: bool = True):
        self.graphs, self.traced = 0, traced

    def __call__(self, graph, example):
        self.graphs += 1
        return aot_eager(graph, example) if self.traced else graph.forward


def step(model, batch) -> list[torch.Tensor]:
    """Loss and gradients of a step of training."""
    model.train().zero_grad()
    tokens = model(batch).final.tokens
    loss = (tokens * torch.linspace(0, 1, tokens[0].numel(), dtype=tokens.dtype).view_as(tokens[0])).sum()
    loss.backward()
    return [
        loss.detach(),
        model.blocks[0].metric.weight.grad,
        model.blocks[1].get_parameter("mlp.fc1.weight").grad,
    ]


@pytest.mark.parametrize("how", [pytest.param("model", marks=pytest.mark.slow), "blocks"])
def test_a_compiled_step_is_the_plain_one(how):
    plain = tiny_vit("dtem_straight_through", timm_options={"depth": 2}).double()
    batch, backend = images().double(), Counting()
    names = list(plain.state_dict())
    trained = step(plain, batch)
    compile_backbone(plain, how, backend=backend)
    assert list(plain.state_dict()) == names
    for own, other in zip(step(plain, batch), trained, strict=True):
        torch.testing.assert_close(own, other, atol=1e-9, rtol=1e-9)
    assert backend.graphs == (1 if how == "model" else plain.depth)


@pytest.mark.slow
@pytest.mark.parametrize("variant", MERGING)
def test_each_policy_trains_by_compiled_blocks(variant):
    """Each block is one graph, with its backward pass."""
    model, batch, backend = tiny_vit(variant).double(), images().double(), Counting()
    found = []
    for way in ("none", "blocks"):
        compile_backbone(model, way, backend=backend)
        model.train().zero_grad()
        tokens = model(batch).final.tokens[:, 0]
        (tokens * torch.linspace(0, 1, tokens.shape[1]).double()).sum().backward()
        found.append([tokens.detach(), model.blocks[0].get_parameter("mlp.fc1.weight").grad])
    assert backend.graphs == model.depth and found[0][1].any()
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(other, own, atol=1e-9, rtol=1e-9)


@pytest.mark.slow
def test_all_of_nine_blocks_are_compiled_once_for_each_of_their_lengths():
    """torch's own limit is 8 graphs, of all blocks together: from block 9 on they ran uncompiled."""
    backend = Counting(traced=False)
    model = (
        tiny_vit("tome", reduction=4, timm_options={"depth": 9, "embed_dim": 12, "num_heads": 1})
        .double()
        .eval()
    )
    batch = images().double()
    with torch.no_grad():
        wanted = model(batch).final.tokens
        compile_backbone(model, "blocks", backend=backend)
        for _ in range(2):
            torch.testing.assert_close(model(batch).final.tokens, wanted, atol=1e-9, rtol=0)
    assert backend.graphs == 9


def test_merge_points_of_a_compiled_backbone_have_the_same_gradients():
    """The objective merge_cost differentiates the metrics behind a backward pass through the tokens."""
    model, batch, found = tiny_vit("dtem", timm_options={"depth": 2}).double(), images().double(), []
    for way in ("none", "blocks"):
        model.zero_grad()
        compile_backbone(model, way, backend="aot_eager")
        output = model(batch, reduction=[8], merge_points_from=1)
        (point,) = output.merge_points
        (grad,) = torch.autograd.grad(output.final.tokens.pow(3).sum(), [point.probe])
        (point.metric * grad[..., : point.metric.shape[-1]]).sum().backward()
        found.append([grad, point.state.tokens.detach(), model.blocks[1].metric.weight.grad.clone()])
    assert found[0][2].any()
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(other, own, atol=1e-9, rtol=1e-9)


def test_what_meets_too_many_lengths_says_so_once_and_is_still_right(caplog, monkeypatch):
    monkeypatch.setattr(compiled, "MOST_GRAPHS", 3)
    backend = Counting(traced=False)
    double = Compiled(lambda x: x * 2, "double", backend=backend)
    with caplog.at_level(logging.WARNING):
        for length in range(1, 7):
            assert torch.equal(double(torch.ones(length)), torch.full((length,), 2.0))
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("pipeline")]
    assert len(ours) == 1 and "double met more than 3 lengths" in ours[0]
    assert backend.graphs == 3


def test_what_torch_cannot_compile_is_refused_and_an_error_of_the_input_is_its_own():
    def asks_the_values(x):
        return x * 2 if x.sum().item() > 0 else x

    with pytest.raises(ConfigError, match="torch cannot compile asks here: .*engine.compile='none'"):
        Compiled(asks_the_values, "asks", backend="eager")(torch.ones(2))
    model = tiny_vit("tome")
    compile_backbone(model, "model", backend="eager")
    with pytest.raises(ConfigError, match="60x64 does not divide by the patch"):
        model(torch.zeros(1, 3, 60, 64))
    with pytest.raises(ConfigError, match="compile is 'all'; give one of none, model, blocks"):
        compile_backbone(model, "all")
    with pytest.raises(ConfigError, match="compiled already"):
        compile_backbone(model, "blocks")


def test_a_copy_of_a_compiled_backbone_runs_its_own_weights():
    model, batch = tiny_vit("tome", timm_options={"depth": 1}).eval(), images()
    compile_backbone(model, "blocks", backend="eager")
    other = copy.deepcopy(model)
    for parameter in other.blocks.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        before = model(batch).final.tokens
        assert not torch.equal(other(batch).final.tokens, before)
        assert torch.equal(model(batch).final.tokens, before)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["model", "blocks"])
def test_a_run_trains_and_is_evaluated_compiled(how, tiny_run, tmp_path):
    """By inductor, which wants a C++ compiler."""
    found = []
    for way in ("none", how):
        config = tiny_run(tmp_path / way, train=dict(steps=4), engine=dict(compile=way))
        lines = (train(config) / "metrics.jsonl").read_text().splitlines()
        values = [value for line in map(json.loads, lines) for name, value in line.items() if "loss" in name]
        found.append(torch.tensor(values))
    assert len(found[0]) > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)
