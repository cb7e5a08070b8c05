"""What connected processes compute together, against the same of all their tensors at once."""

import math
import multiprocessing
from pathlib import Path

import pytest
import torch
from ranks import ONE_RANK
from torch import Tensor

from pipeline.ranks import Processes, mean_over_ranks

WORLD_SIZE = 5
CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8)


def tensors_of(rank: int) -> dict[str, Tensor]:
    whole = torch.arange(12).reshape(3, 4) + rank
    return {str(dtype): whole.to(dtype, copy=True) for dtype in DTYPES} | {
        "scalar": torch.tensor(rank),
        "empty": torch.empty(0, 2),
        "transposed": whole.mT,
    }


def exchange(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=WORLD_SIZE
    )
    ranks, found = Processes(CPU), {}
    assert (ranks.rank, ranks.world_size) == (rank, WORLD_SIZE)
    for name, tensor in tensors_of(rank).items():
        own = tensor.clone()
        found[f"gather {name}"] = ranks.gather(own)
        assert torch.equal(own, tensor)
        found[f"broadcast {name}"] = ranks.broadcast(tensor.contiguous())
        found[f"all_reduce {name}"] = ranks.all_reduce(own.contiguous())
    sends, send = [], torch.distributed.isend
    torch.distributed.isend = lambda *args, **named: sends.append(args[1]) or send(*args, **named)
    found["largest"] = ranks.largest(torch.tensor([rank, -rank, 5 if rank == 1 else 0]))
    assert len(sends) == math.ceil(math.log2(WORLD_SIZE))
    total, count = torch.tensor(float(rank + 1)), torch.tensor(2 * rank)
    found["mean"] = mean_over_ranks(total, count)
    assert (total, count) == (rank + 1, 2 * rank), "what it is given stays as it is"
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[str, Tensor]]:
    """Of each rank. The processes are forked, so that they need not import torch again."""
    folder, context = tmp_path_factory.mktemp("ranks"), multiprocessing.get_context("fork")
    processes = [context.Process(target=exchange, args=(rank, folder)) for rank in range(WORLD_SIZE)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * WORLD_SIZE
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD_SIZE)]


@pytest.mark.parametrize("name", tensors_of(0))
def test_every_rank_has_the_same_of_all_tensors(found, name):
    everybodys = torch.stack([tensors_of(rank)[name] for rank in range(WORLD_SIZE)])
    for own in found:
        assert torch.equal(own[f"gather {name}"], everybodys)
        assert torch.equal(own[f"broadcast {name}"], everybodys[0])
        assert torch.equal(own[f"all_reduce {name}"], everybodys.sum(0).to(everybodys.dtype))
        assert own[f"gather {name}"].dtype == everybodys.dtype


def test_the_mean_of_the_parts_is_that_of_the_whole(found):
    parts = torch.stack([own["mean"] for own in found])
    total, count = (
        sum(one(rank) for rank in range(WORLD_SIZE)) for one in (lambda n: n + 1, lambda n: 2 * n)
    )
    torch.testing.assert_close(parts.mean(), torch.tensor(total / count))


def test_every_rank_has_the_largest_of_each_element(found):
    for own in found:
        assert own["largest"].tolist() == [WORLD_SIZE - 1, 0, 5]


@pytest.mark.parametrize("name", tensors_of(0))
def test_one_rank_is_alone(name):
    tensor = tensors_of(0)[name]
    assert (ONE_RANK.rank, ONE_RANK.world_size) == (0, 1)
    assert ONE_RANK.all_reduce(tensor) is tensor and ONE_RANK.broadcast(tensor) is tensor
    assert torch.equal(ONE_RANK.gather(tensor), tensor[None])
    torch.testing.assert_close(mean_over_ranks(torch.tensor(3.0), torch.tensor(2)), torch.tensor(1.5))
    assert mean_over_ranks(torch.tensor(0.0), torch.tensor(0)) == 0
