"""What only a CUDA device shows: the compiled kernels at the shapes of real models, graphs, and that no pass
waits for the device."""

import pytest
import torch
from clear_metric import clear_metric
from tiny import images, merged, random_state, tiny_vit

from pipeline.kernels.ops import match_rows, move_rows
from pipeline.merging.apply import SMALLEST, apply
from pipeline.merging.matching import match_by
from pipeline.merging.policies import POLICIES
from pipeline.merging.unmerge import slots
from pipeline.token_state import TokenState

pytestmark = pytest.mark.cuda
SHAPES = [(1, 197, 1, 16), (256, 197, 1, 16), (4, 261, 5, 128), (2, 577, 1, 288), (1, 1025, 1, 40)]
"""Batch, tokens, prefix, r."""


def state_of(batch, num_tokens, prefix, dtype):
    state = random_state(num_tokens, prefix, batch=batch, dim=384)
    return TokenState(state.tokens.cuda().to(dtype), state.size.cuda(), state.grid, prefix, num_tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_do_what_the_operators_do(shape, dtype, monkeypatch):
    batch, num_tokens, prefix, r = shape
    monkeypatch.setenv("DTEM_KERNELS", "eager")
    state = state_of(batch, num_tokens, prefix, dtype)
    metric = clear_metric(batch, num_tokens, prefix).cuda().to(dtype)
    with torch.no_grad():
        wanted = match_by(metric, state, r)
        after = apply(state, wanted)
    first = prefix + prefix % 2
    got = match_rows(metric, prefix, first, prefix + 1 - prefix % 2, r)
    for ours, right in zip(got, (wanted.keep, wanted.source, wanted.slot), strict=True):
        assert torch.equal(ours, right)
    tokens, size = move_rows(state.tokens, state.size, *got, SMALLEST)
    torch.testing.assert_close(tokens, after.tokens)
    assert torch.equal(size, after.size)
    again, _ = move_rows(state.tokens, state.size, *got, SMALLEST)
    assert torch.equal(again, tokens), "a result repeats to the last bit"


@pytest.mark.parametrize("way", ["auto", "eager", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_merged_forward_never_waits_for_the_device(way, dtype, monkeypatch):
    monkeypatch.setenv("DTEM_KERNELS", way)
    model, batch = tiny_vit("tome").cuda().to(dtype).eval(), images().cuda().to(dtype)
    with torch.no_grad():
        model(batch)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("way", ["auto", "triton"])
def test_a_cuda_graph_of_a_merged_forward_repeats_it(way, monkeypatch):
    monkeypatch.setenv("DTEM_KERNELS", way)
    model, batch = tiny_vit("tome").cuda().eval(), images().cuda()
    with torch.no_grad():
        wanted = model(batch).final
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            model(batch)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = model(batch).final
        graph.replay()
    torch.testing.assert_close(got.size, wanted.size)
    assert torch.equal(slots(got), slots(wanted))


def test_a_compiled_merge_runs_the_kernels(monkeypatch):
    monkeypatch.setenv("DTEM_KERNELS", "triton")
    torch.compiler.reset()
    state, policy = state_of(4, 197, 1, torch.float32), POLICIES.build("tome")
    metric = clear_metric(4, 197, 1).cuda()

    def step(metric, size):
        after = merged(policy, TokenState(metric, size, (14, 14), 1, 197), metric, 16)
        return after.tokens, after.size

    with torch.no_grad():
        wanted = step(metric, state.size)
        got = torch.compile(step, fullgraph=True)(metric, state.size)
    for ours, right in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, right)
    torch.compiler.reset()
