"""How near a computation came to choosing otherwise.

Which tokens merge, which class is first and which word follows are choices among numbers. Where two of them
are nearly equal, another rounding chooses the other one, and what follows is another computation. So a test
that compares such chains in float32 asserts that all choices were clear.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CLEAR = 1e-4
"""Of cosines, probabilities and logits: about a thousand roundings of a float32 number near 1."""


class Choices(TorchDispatchMode):
    """`with Choices() as choices: ...` looks at every sort, top-k and maximum along a dim of floating point
    numbers.

    least: the smallest difference of two numbers of which one was chosen, or came first. seen: how many
    choices there were. Infinities stand for what may not be chosen, so they do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.least, self.seen = float("inf"), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {
            name: value for (name, value) in zip((a.name for a in func._schema.arguments), args, strict=False)
        } | kwargs
        match func.overloadpacket.__name__:
            case "topk":
                self._look(given["self"], given.get("dim", -1), given["k"])
            case "sort":
                self._look(given["self"], given.get("dim", -1), None)
            case "max" | "min" | "argmax" | "argmin" if given.get("dim") is not None:
                lowest = "min" in func.overloadpacket.__name__
                self._look(-given["self"] if lowest else given["self"], given["dim"], 1)
        return func(*args, **kwargs)

    def _look(self, numbers: Tensor, dim: int, chosen: int | None) -> None:
        """chosen: how many of the largest are taken; None where each has its place."""
        if not numbers.is_floating_point() or numbers.shape[dim] < 2 or not numbers.numel():
            return
        ranked = numbers.detach().sort(dim=dim, descending=True).values.movedim(dim, -1).double()
        gaps = ranked[..., :-1] - ranked[..., 1:]
        gaps = gaps if chosen is None else gaps[..., chosen - 1 : chosen]
        real = gaps[gaps.isfinite()]
        if real.numel():
            self.least, self.seen = min(self.least, real.min().item()), self.seen + real.numel()


def clear_rows(function: Callable[[Tensor], Any], rows: Tensor, num: int) -> Tensor:
    """The first `num` rows, out of enough, whose choices in `function`, asked for one row at a time, are
    clear."""
    clear = []
    for row in rows.split(1):
        with torch.no_grad(), Choices() as choices:
            function(row)
        if choices.least > CLEAR:
            clear.append(row)
    assert len(clear) >= num, f"{len(clear)} of {len(rows)} inputs have clear choices; the test needs {num}"
    return torch.cat(clear[:num])
