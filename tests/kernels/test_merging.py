"""The kernels of matching and moving against PyTorch's operators: on a GPU where one is, else in Triton's
interpreter."""

from dataclasses import replace

import pytest
import torch
from clear_metric import clear_metric
from interpreter import DEVICE
from tiny import merged, random_state

from pipeline.kernels import match as kernels
from pipeline.merging.apply import apply
from pipeline.merging.matching import match_by
from pipeline.merging.partitions import partition_rows
from pipeline.merging.policies import POLICIES
from pipeline.merging.schedule import mergeable
from pipeline.merging.unmerge import unmerge_tokens
from pipeline.token_state import Assignment, Carried, TokenState

MOST = 1000
SHAPES = [(1, 17, 0, 1), (3, 18, 1, MOST), (3, 37, 5, 4), (1, 40, 2, MOST), (2, 3, 0, 1)]
"""Batch, tokens, prefix, r."""
HALVES = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def state_of(batch, num_tokens, prefix, dtype=torch.float32):
    state = random_state(num_tokens, prefix, batch=batch, dim=21)
    return replace(state, tokens=state.tokens.to(DEVICE, dtype), size=state.size.to(DEVICE))


@pytest.fixture
def by(monkeypatch):
    """by(way, function, ...): what the function gives that way, without gradients."""

    def run(way, function, *arguments, **options):
        monkeypatch.setenv("DTEM_KERNELS", way)
        with torch.no_grad():
            return function(*arguments, **options)

    return run


@pytest.fixture(params=["one launch", "two"])
def launches(request, monkeypatch):
    if request.param == "two":
        monkeypatch.setattr(kernels, "SOURCES_AT_ONCE", 2)
        monkeypatch.setattr(kernels, "TILE_OF_SOURCES", 16)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_chooses_what_the_operators_choose(shape, by, launches):
    batch, num_tokens, prefix, r = shape
    state, r = state_of(batch, num_tokens, prefix), min(r, mergeable(num_tokens, prefix))
    for dtype in HALVES:
        metric = clear_metric(batch, num_tokens, prefix).to(DEVICE, dtype)
        wanted, got = (by(way, match_by, metric, state, r) for way in ("eager", "triton"))
        for name in ("keep", "source", "slot"):
            assert torch.equal(getattr(got, name), getattr(wanted, name)), name
        assert (got.num_tokens, got.num_active) == (wanted.num_tokens, wanted.num_active)


@pytest.mark.parametrize("partition", ["checkerboard", "path"])
def test_the_kernel_follows_a_partition(partition, by):
    state = state_of(2, 25, 1)
    rows = partition_rows(partition, None, state)
    ordered = clear_metric(2, 25, 1).to(DEVICE)
    metric = torch.empty_like(ordered)
    metric.flatten(0, 1)[rows.flatten()] = ordered.flatten(0, 1)
    wanted, got = (by(way, match_by, metric, state, 9, partition) for way in ("eager", "triton"))
    for name in ("keep", "source", "slot"):
        assert torch.equal(getattr(got, name), getattr(wanted, name)), name
    assert not torch.equal(got.source, by("triton", match_by, metric, state, 9).source)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_the_kernel_moves_as_the_operators_do(shape, dtype, by):
    batch, num_tokens, prefix, r = shape
    state, r = state_of(batch, num_tokens, prefix, dtype), min(r, mergeable(num_tokens, prefix))
    state = replace(state, carried={"place": Carried(state.size[..., None] / 7, "mean")})
    chosen = by("eager", match_by, clear_metric(batch, num_tokens, prefix).to(DEVICE), state, r)
    wanted, got = (by(way, apply, state, chosen) for way in ("eager", "triton"))
    assert got.tokens.dtype == dtype and got.size.dtype == torch.float32
    # the interpreter cuts bfloat16 off where a GPU rounds it
    torch.testing.assert_close(got.tokens, wanted.tokens, rtol=HALVES[dtype], atol=HALVES[dtype])
    assert torch.equal(got.size, wanted.size)
    assert torch.equal(got.carried["place"].values, wanted.carried["place"].values)
    assert torch.equal(got.tokens[:, :prefix], state.tokens[:, :prefix])


@pytest.mark.parametrize("variant", ["tome", "dtem"])
def test_the_laws_of_merging_hold_for_the_kernels(variant, by, launches):
    state = state_of(2, 33, 1)
    after = by("triton", merged, POLICIES.build(variant), state, state.tokens, 9)
    torch.testing.assert_close(after.size.sum(1), state.size.sum(1))
    total = [(s.tokens * s.size[..., None]).sum(1) for s in (state, after)]
    torch.testing.assert_close(total[1], total[0], atol=1e-4, rtol=1e-5)
    (merge,) = after.merges
    every = torch.cat([merge.keep.flatten(), merge.source.flatten()]).sort().values
    assert torch.equal(every, torch.arange(2 * 33, device=DEVICE))


def test_unmerging_restores_what_is_equal_in_pairs(by):
    patches = torch.randint(-8, 8, (2, 8, 5)).float().repeat_interleave(2, dim=1)
    tokens = torch.cat([torch.randn(2, 1, 5), patches], dim=1).to(DEVICE)
    state = TokenState.start(tokens, (4, 4), 1)
    after = by("triton", merged, POLICIES.build("tome"), state, tokens, 8)
    assert after.tokens.shape[1] == 9
    assert torch.equal(unmerge_tokens(after.tokens, after.merges), tokens)


def test_of_equal_scores_the_first_ones_count(by, launches):
    state = state_of(2, 11, 1)
    chosen = by("triton", match_by, torch.zeros(2, 11, 4, device=DEVICE), state, 2)
    assert (chosen.source % 11).tolist() == [[2, 4], [2, 4]]
    assert (chosen.slot % 9).tolist() == [[4, 4], [4, 4]]


def test_what_is_no_number_ranks_last_and_names_no_token_outside(by, launches):
    state, metric = state_of(1, 12, 0), clear_metric(1, 12, 0).to(DEVICE)
    metric[0, 4] = torch.nan
    chosen = by("triton", match_by, metric, state, 6)
    assert chosen.source[0, -1] == 4 and 0 <= chosen.slot.min() and chosen.slot.max() < 6


def test_tokens_of_size_zero_merge_to_numbers(by):
    state = state_of(2, 17, 1)
    state.size[:, 3:12] = 0
    after = by("triton", merged, POLICIES.build("tome"), state, state.tokens, 7)
    assert after.tokens.isfinite().all()
    torch.testing.assert_close(after.size.sum(1), state.size.sum(1))


def test_gradients_weights_and_wide_numbers_are_the_operators(by, monkeypatch):
    """Kernels that do nothing: who calls one fails."""
    for name in ("match_rows", "move_rows"):
        monkeypatch.setattr(f"pipeline.merging.on_gpu.{name}", None)
    state = state_of(2, 17, 1)
    double = replace(state, tokens=state.tokens.double(), size=state.size.double())
    by("triton", merged, POLICIES.build("tome"), double, double.tokens, 3)
    monkeypatch.setenv("DTEM_KERNELS", "eager")
    chosen: Assignment = match_by(state.tokens, state, 3)
    monkeypatch.setenv("DTEM_KERNELS", "triton")
    apply(replace(state, tokens=state.tokens.requires_grad_()), chosen).tokens.sum().backward()
    with torch.no_grad():
        apply(state, replace(chosen, weight=state.size))
    with pytest.raises(TypeError):
        by("triton", apply, state, chosen)


TOME = POLICIES.build("tome")


def step(tokens, size):
    """A merge, as a function of tensors."""
    after = merged(TOME, TokenState(tokens, size, (1, 16), 1, 17), tokens, 3)
    return after.tokens, after.size


def test_a_compiled_merge_has_the_kernels_as_operators(by):
    torch.compiler.reset()
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph.code)
        return graph

    state = state_of(2, 17, 1)
    metric = clear_metric(2, 17, 1).to(DEVICE)
    wanted = by("eager", step, metric, state.size)
    got = by("triton", torch.compile(step, fullgraph=True, backend=keep), metric, state.size)
    assert all(f"dtem.{name}" in graphs[0] for name in ("match_rows", "move_rows")), graphs[0]
    for ours, right in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, right)
    torch.compiler.reset()


def test_an_exported_merge_has_pytorchs_operators_alone(by):
    class Step(torch.nn.Module):
        def forward(self, tokens, size):
            return step(tokens, size)

    state = state_of(2, 17, 1)
    with torch.no_grad():
        program = by("triton", torch.export.export, Step(), (state.tokens, state.size))
    assert "aten" in program.graph_module.code and "dtem" not in program.graph_module.code


@pytest.mark.parametrize("operator", ["match_rows", "move_rows"])
def test_an_operator_says_its_shapes_without_running(operator):
    state = state_of(2, 17, 1)
    chosen = match_by(state.tokens, state, 3)
    arguments = {
        "match_rows": (state.tokens, 1, 2, 1, 3),
        "move_rows": (state.tokens, state.size, chosen.keep, chosen.source, chosen.slot, 1e-6),
    }
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(getattr(torch.ops.dtem, operator), arguments[operator], test_utils=checks)
