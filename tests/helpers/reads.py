"""How much of some tensors is read: views read nothing, every other operation reads what it is given."""

from collections.abc import Iterable

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Reads(TorchDispatchMode):
    """While it is open, counts the bytes that are read of the tensors, by name."""

    def __init__(self, tensors: Iterable[tuple[str, Tensor]]):
        super().__init__()
        self.bytes: dict[str, int] = {}
        self._names = {tensor.untyped_storage().data_ptr(): name for name, tensor in tensors}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        results = {place(leaf) for leaf in tree_leaves(made) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and place(leaf) in self._names and place(leaf) not in results:
                name = self._names[place(leaf)]
                self.bytes[name] = self.bytes.get(name, 0) + leaf.nbytes
        return made


def place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
