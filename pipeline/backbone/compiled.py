"""torch.compile of a backbone, as a whole or block by block. No other file calls it.

Dynamo keeps its graphs by code object. Blocks that share one fill its limit of 8 graphs, as each has another
length, and run uncompiled from then on, without a word. So each compiled function is a copy with a code
object of its own, and a function that meets too many lengths says so.
"""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FunctionType, MethodType
from typing import Any, Generic, ParamSpec, Self, TypeVar, cast

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch.utils._pytree import tree_map_only

from pipeline.backbone.backbone import Backbone
from pipeline.backbone.block import MergingBlock
from pipeline.errors import ConfigError

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

COMPILES = ("none", "model", "blocks")
MOST_GRAPHS = 64
"""Graphs of one function: lengths, batch sizes, and phases of training."""
HALVES = ("attend", "feed_forward")
"""Of a block that merges."""
Backend = str | Callable[..., Any]


class Compiled(Generic[P, T]):
    """A function or bound method with static lengths, as one graph for each. Calls raise ConfigError where
    torch cannot compile it. With more than MOST_GRAPHS, further ones run uncompiled, with a warning once.

    inference: on a GPU by CUDA graphs, whose outputs are copied, so that they may be kept. backend: see
    torch.compile.
    """

    def __init__(
        self,
        function: Callable[P, T],
        name: str,
        *,
        inference: bool = False,
        backend: Backend = "inductor",
    ):
        self._function, self._name = function, name
        self._inference, self._backend = inference, backend
        self._full = False
        # of the process; timm's optimizers set it to a million
        torch._dynamo.config.recompile_limit = MOST_GRAPHS
        self._compiled: Callable[P, T] = torch.compile(
            _with_own_code(function, name),
            fullgraph=True,
            dynamic=False,
            backend=backend,
            mode="reduce-overhead" if inference and backend == "inductor" else None,
        )

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():  # inside of another graph
            return self._function(*args, **kwargs)
        on_gpu = self._inference and any(
            isinstance(arg, Tensor) and arg.is_cuda for arg in (*args, *kwargs.values())
        )
        if on_gpu:
            torch.compiler.cudagraph_mark_step_begin()
        try:
            with self._as_full() if self._full else nullcontext():
                found = self._compiled(*args, **kwargs)
        except FailOnRecompileLimitHit:
            self._full = True
            log.warning(
                "%s met more than %d lengths, batch sizes and phases; from now on it runs uncompiled on "
                "others. Give inputs of fewer sizes, or engine.compile='none'",
                self._name,
                MOST_GRAPHS,
            )
            return self._function(*args, **kwargs)
        except TorchDynamoException as err:
            self._function(*args, **kwargs)  # raises what is wrong with the input, if that is it
            raise ConfigError(
                f"torch cannot compile {self._name} here: {_reason(err)}; give engine.compile='none' "
                "(--compile none)"
            ) from err
        return cast(T, tree_map_only(Tensor, torch.clone, found)) if on_gpu else found

    @contextmanager
    def _as_full(self) -> Iterator[None]:
        """A context in which known graphs run, and what is new runs uncompiled."""
        with torch.compiler.set_stance("eager_on_recompile"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.compile with fullgraph=True found no compiled frames")
            yield

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """That of the copied module."""
        function = copy.deepcopy(self._function, memo)
        return type(self)(function, self._name, inference=self._inference, backend=self._backend)


class _UnlessObserved(Generic[P, T]):
    """A compiled forward, and the plain one where merge points are asked for: their metrics are
    differentiated apart from the tokens, which one graph would not allow. keyword: the argument by which they
    are asked."""

    def __init__(self, plain: Callable[P, T], compiled: Callable[P, T], keyword: str):
        self._plain, self._compiled, self._keyword = plain, compiled, keyword

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        observed = kwargs.get(self._keyword) is not None
        return (self._plain if observed else self._compiled)(*args, **kwargs)


def compile_backbone(
    backbone: Backbone, how: str, *, inference: bool = False, backend: Backend = "inductor"
) -> None:
    """Compiles the backbone in place. Its parameters keep their names, and hooks run around the graphs.

    how: one of COMPILES; `blocks` compiles each block by itself, `model` the forward pass as one graph.
    Passes with merge points have the halves of each block as graphs, in both. Copy a backbone before. Raises
    ConfigError for another word, and for a backbone that is compiled.
    """
    if how not in COMPILES:
        raise ConfigError(f"compile is '{how}'; give one of {', '.join(COMPILES)}")
    if how == "none":
        return
    if is_compiled(backbone):
        raise ConfigError("this backbone is compiled already; compile a copy of the uncompiled one")
    options: dict[str, Any] = {"backend": backend}
    for number, block in enumerate(backbone.blocks):
        forward = block.forward
        for half in HALVES if isinstance(block, MergingBlock) else ():
            _replace(block, half, Compiled(getattr(block, half), f"block_{number}_{half}", **options))
        if how == "blocks":
            whole = Compiled(forward, f"block_{number}", **options)
            _replace(block, "forward", _UnlessObserved(forward, whole, "tell"))
    if how == "model":
        forward = backbone.forward
        whole = Compiled(forward, "backbone", inference=inference, **options)
        _replace(backbone, "forward", _UnlessObserved(forward, whole, "merge_points_from"))


def is_compiled(module: nn.Module) -> bool:
    """Whether some part of the module is compiled."""
    own = (value for part in module.modules() for value in part.__dict__.values())
    return any(isinstance(value, Compiled | _UnlessObserved) for value in own)


def _replace(module: nn.Module, name: str, function: object) -> None:
    """Puts a function before the class's own, which hooks run around; no part of the state."""
    module.__dict__[name] = function


def _with_own_code(function: Callable[P, T], name: str) -> Callable[P, T]:
    """The function or bound method with a copy of its code, by that name."""
    plain = cast(FunctionType, getattr(function, "__func__", function))
    code = plain.__code__.replace(co_name=name)
    own = FunctionType(code, plain.__globals__, name, plain.__defaults__, plain.__closure__)
    own.__kwdefaults__ = plain.__kwdefaults__
    owner = getattr(function, "__self__", None)
    return cast(Callable[P, T], own if owner is None else MethodType(own, owner))


def _reason(err: BaseException) -> str:
    return str(err).strip().partition("\n")[0] or type(err).__name__
