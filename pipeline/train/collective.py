"""Exchange of texts, values and buffers between ranks. Every rank calls these functions, in the same
order."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline.errors import CheckpointError, PipelineError
from pipeline.ranks import Ranks


def from_rank0(ranks: Ranks, text: str) -> str:
    """Rank 0's text, on every rank, which waits for it as long as rank 0 may work alone. Bytes go over the
    wire, never objects."""
    if ranks.world_size == 1:
        return text
    ranks = ranks.hosts
    own = _tensor_of(text.encode(), ranks.device)
    length = int(ranks.broadcast(torch.tensor(len(own), device=ranks.device)))
    return _bytes_of(ranks.broadcast(own if ranks.rank == 0 else own.new_empty(length))).decode()


def agreed(ranks: Ranks, work: Callable[[], Any]) -> Any:
    """What rank 0's `work` returns, as JSON gives it back, on every rank. What goes wrong there raises
    CheckpointError on all of them, as they wait to hear of it."""
    found, trouble = None, None
    if ranks.rank == 0:
        try:
            found = work()
        except Exception as err:  # noqa: BLE001 - raised below
            trouble = err
    told = from_rank0(ranks, json.dumps([said(trouble), found]))
    text, found = json.loads(told)
    if text is not None:
        raise CheckpointError(text) from trouble
    return found


def said(err: BaseException | None) -> str | None:
    """An error as a text that is not empty: its own where it is written for a user, else with its kind."""
    if err is None:
        return None
    return (str(err) if isinstance(err, OSError | SafetensorError | PipelineError) else "") or repr(err)


def joined_json(ranks: Ranks, values: Sequence[Any]) -> list[Any]:
    """The values of all ranks in one list, in the order of ranks, as JSON gives them back."""
    own, ranks = json.dumps(list(values)).encode() + b"\n", ranks.hosts
    lines = _bytes_of(joined(ranks, _tensor_of(own, ranks.device))).splitlines()
    return [value for line in lines for value in json.loads(line)]


def joined(ranks: Ranks, own: Tensor) -> Tensor:
    """[n, ...] on the CPU: the tensors of all ranks, concatenated in the order of ranks. They may differ in
    n."""
    if ranks.world_size == 1:
        return own.cpu()
    counts = ranks.gather(torch.tensor(len(own), device=ranks.device)).tolist()
    padded = own.new_zeros(max(counts), *own.shape[1:], device=ranks.device)
    padded[: len(own)] = own
    parts = ranks.gather(padded).cpu()
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def maximum(ranks: Ranks, value: int) -> int:
    """The largest value of any rank."""
    return int(ranks.hosts.largest(torch.tensor(value)))


def anywhere(ranks: Ranks, flag: bool) -> bool:
    """Whether the flag is set on any rank."""
    return maximum(ranks, int(flag)) > 0


@torch.no_grad()
def average_buffers(ranks: Ranks, module: nn.Module) -> None:
    """Sets the module's floating-point buffers (running statistics of norms) to their mean over ranks, each
    of which has filled them from its own samples.

    A running mean is linear in what it has seen, so how often this is done changes nothing but rounding. The
    sum is float64, in which a float32 value that is the same on all ranks comes back as it was.
    """
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if ranks.world_size == 1 or not buffers:
        return
    total = ranks.all_reduce(torch.cat([buffer.double().flatten() for buffer in buffers]))
    means = (total / ranks.world_size).split([buffer.numel() for buffer in buffers])
    for buffer, mean in zip(buffers, means, strict=True):
        buffer.copy_(mean.view_as(buffer))


def _tensor_of(data: bytes, device: torch.device) -> Tensor:
    """uint8 [n]"""
    # torch.frombuffer refuses no bytes
    if not data:
        return torch.empty(0, dtype=torch.uint8, device=device)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device)


def _bytes_of(tensor: Tensor) -> bytes:
    return tensor.cpu().numpy().tobytes()
