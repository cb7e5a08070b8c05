"""Each way to compute attention with sizes gives what its definition gives, and which way is taken."""

import warnings
from dataclasses import replace

import pytest
import torch
from interpreter import DEVICE
from torch._dynamo.backends.debugging import aot_eager
from torch.utils.checkpoint import checkpoint

from launch.measure.watched import Watched, watched
from pipeline.backbone import attention_kernels
from pipeline.backbone.attention import proportional_attention, reference_attention
from pipeline.backbone.attention_kernels import WAYS, Operands
from pipeline.errors import ConfigError
from pipeline.kernels import attention as kernels
from pipeline.kernels import choice

ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Of a result, by norm."""


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        yield


def operands(dtype=torch.float32, dim=32, tokens=70, scale=0.2):
    """Packed, as a linear layer gives them; some tokens have no size."""
    packed = torch.randn(2, tokens, 3, 2, dim, device=DEVICE).to(dtype).permute(2, 0, 3, 1, 4)
    size = torch.randint(0, 300, (2, tokens), device=DEVICE).float()
    size[:, 3] = 0
    q, k, v = packed.unbind(0)
    return Operands(q, k, v, size, None, packed, scale)


def wanted_of(x):
    return reference_attention(*(y.double() for y in (x.q, x.k, x.v, x.size)), scale=x.scale)


def off(ours, wanted):
    return ((ours.double() - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(("dim", "tokens"), [(40, 70), (128, 33)])
def test_every_way_is_the_definition(way, dtype, dim, tokens):
    if way == "mask" and dtype != torch.float32 and (DEVICE == "cuda" or dtype == torch.float16):
        pytest.skip("its kernel would round the sizes, so it is no way there")
    x = operands(dtype, dim, tokens)
    with torch.no_grad():
        found = WAYS[way](x)
    assert found.dtype == dtype and found.shape == x.q.shape
    assert off(found, wanted_of(x)) < ROUNDING[dtype]


@pytest.mark.parametrize("way", ["flex", "triton"])
def test_queries_may_be_fewer_than_keys(way):
    """As in the attention of words to an image's tokens."""
    x = operands()
    few = Operands(x.q[:, :, :5], x.k, x.v, x.size, None, None, x.scale)
    with torch.no_grad():
        assert off(WAYS[way](few), wanted_of(few)) < ROUNDING[torch.float32]


@pytest.mark.parametrize("way", ["flex", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_token_of_size_zero_is_not_there_however_well_it_matches(way, dtype):
    x = operands(dtype, tokens=20, scale=0.25)
    x.q[..., 0], x.k[..., 0], x.k[:, :, 3, 0] = 10, 0, 10
    stay = [i for i in range(20) if i != 3]
    without = Operands(x.q, x.k[:, :, stay], x.v[:, :, stay], x.size[:, stay], None, None, x.scale)
    with torch.no_grad():
        assert off(WAYS[way](x), WAYS[way](without).double()) < ROUNDING[dtype]


@pytest.mark.parametrize("way", ["flex", "triton"])
def test_sizes_are_not_rounded_to_bfloat16(way):
    """Equal logits, so that the output is the first token's share; log 308 rounded is off by 1.1 %. A kernel
    rounds the weights and the output, each by up to 2^-8; Triton's interpreter cuts both off."""
    sizes = torch.arange(1.0, 400.0, 8.0, device=DEVICE)
    size = torch.stack([sizes, torch.full_like(sizes, 308.0)], dim=1)
    q, k, v = (torch.zeros(len(sizes), 1, 2, 32, dtype=torch.bfloat16, device=DEVICE) for _ in range(3))
    v[:, 0, 0] = 1
    with torch.no_grad():
        share = WAYS[way](Operands(q, k, v, size, None, None, 0.2))[:, 0, 0, 0].double()
    right = size[:, 0].double() / size.double().sum(1)
    error = (share - right) / right
    cut_off = way == "triton" and DEVICE == "cpu"
    assert error.max() < (1e-6 if cut_off else 2**-7)
    assert error.min() > -(2**-6 if cut_off else 2**-7)


def run(x, **options):
    return proportional_attention(x.q, x.k, x.v, x.size, scale=x.scale, **options)


def test_a_variable_names_the_way(monkeypatch):
    x = operands()
    for named, kernel in {"triton": "Triton", "flex": "flex"}.items():
        monkeypatch.setenv("DTEM_ATTENTION", named)
        assert watched(lambda: run(x)).attention == kernel
    for named in ("channels", "mask"):
        monkeypatch.setenv("DTEM_ATTENTION", named)
        assert watched(lambda: run(x)).attention not in ("Triton", "flex", "none")
    monkeypatch.setenv("DTEM_ATTENTION", "cudnn")
    with pytest.raises(
        ConfigError, match="DTEM_ATTENTION is 'cudnn'; give one of auto, mask, channels, flex"
    ):
        run(x)


@pytest.mark.parametrize(
    "case", ["dropout", "bias", "float64", "wide heads", "gradient of tokens", "gradient of sizes"]
)
def test_what_the_kernel_cannot_compute_goes_the_usual_way(case, monkeypatch):
    monkeypatch.setenv("DTEM_ATTENTION", "triton")
    x, options = operands(tokens=20, dim=144 if case == "wide heads" else 32), {}
    if case == "float64":
        x = replace(x, q=x.q.double(), k=x.k.double(), v=x.v.double(), size=x.size.double())
    if case == "dropout":
        options["dropout"] = 0.1
    if case == "bias":
        options["bias"] = torch.zeros_like(x.k[..., 0])
    for leaf in {"gradient of tokens": [x.v], "gradient of sizes": [x.size]}.get(case, []):
        leaf.requires_grad_()
    with Watched() as seen:
        result = run(x, **options)
    assert seen.attention not in ("Triton", "none")
    assert result.requires_grad == case.startswith("gradient")
    if case != "dropout":
        assert off(result.detach(), wanted_of(x).detach()) < ROUNDING[torch.float32]


def test_a_compiled_attention_takes_the_named_kernel_as_an_operator(monkeypatch):
    monkeypatch.setenv("DTEM_ATTENTION", "triton")
    torch.compiler.reset()
    graphs = []

    def backend(graph, example):
        graphs.append(str(graph.code))
        return aot_eager(graph, example)

    x = operands(tokens=20)
    with torch.no_grad():
        compiled = torch.compile(
            lambda q, k, v, size: run(replace(x, q=q, k=k, v=v, size=size)), backend=backend, fullgraph=True
        )
        assert torch.equal(compiled(x.q, x.k, x.v, x.size), run(x))
    assert len(graphs) == 1 and "attend_by_weight" in graphs[0]
    torch.compiler.reset()


def test_ways_are_compared_apart_from_what_a_checkpoint_counts(monkeypatch, caplog):
    """Activation checkpointing computes a block again, and then finds no trial in it."""
    x = operands(tokens=20)
    leaf = x.packed.detach().clone().requires_grad_()

    def block(packed):
        q, k, v = packed.unbind(0)
        return run(replace(x, q=q, k=k, v=v))

    wanted = torch.autograd.grad(block(leaf).sum(), leaf)[0]
    monkeypatch.setenv("DTEM_ATTENTION", "auto")
    monkeypatch.setattr(choice, "_fastest", {})
    monkeypatch.setattr(choice, "_milliseconds", lambda way: len(way()))
    monkeypatch.setattr(attention_kernels, "is_measured", lambda x: True)
    output = checkpoint(block, leaf, use_reentrant=False)
    assert len(choice._fastest) == 1 and not caplog.records
    assert off(torch.autograd.grad(output.sum(), leaf)[0], wanted.double()) < 3 * ROUNDING[torch.float32]


def test_a_grid_grows_with_the_batch_along_its_first_axis(monkeypatch):
    """CUDA's second one ends at 65535."""
    grids = []
    monkeypatch.setattr(kernels, "launch", lambda kernel, grid, *rest, **options: grids.append(grid))
    q = torch.empty(6000, 12, 70, 32, device="meta")
    kernels.attend_by_weight(q, q, q, q[:, 0, :, 0], 0.2)
    assert grids == [(72000, 3)]


@pytest.mark.cuda
@pytest.mark.parametrize("learned_size", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", ["channels", "flex", "auto"])
def test_gradients_on_a_device_are_those_of_the_definition(way, dtype, learned_size, monkeypatch):
    monkeypatch.setattr(choice, "_fastest", {})
    monkeypatch.setenv("DTEM_ATTENTION", way)
    x = operands(dtype, 64, 197, scale=0.125)
    x.size.clamp_(min=1)  # the gradient of size 0 is cut off
    leaves = [x.q, x.k, x.v, x.size] if learned_size else [x.q, x.k, x.v]
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    x = replace(
        x, q=leaves[0], k=leaves[1], v=leaves[2], packed=None, size=leaves[-1] if learned_size else x.size
    )
    probe = torch.randn_like(x.q)
    ours, right = (
        torch.autograd.grad((result * probe.to(result.dtype)).sum(), leaves)
        for result in (run(x), wanted_of(x))
    )
    for got, wanted in zip(ours, right, strict=True):
        assert off(got, wanted.double()) < 3 * ROUNDING[dtype]


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_the_measured_way_is_kept_for_a_class_of_shapes(dtype, monkeypatch, caplog):
    monkeypatch.setattr(choice, "_fastest", {})
    monkeypatch.setenv("DTEM_ATTENTION", "auto")
    with torch.no_grad():
        for tokens in (197, 181, 165):
            x = operands(dtype, 64, tokens, scale=0.125)
            assert off(run(x), wanted_of(x)) < ROUNDING[dtype]
    assert len(choice._fastest) == 1 and not caplog.records
