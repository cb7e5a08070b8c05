"""The limit of training samples that cannot be read, over all ranks, and the shards in which they are.

Every rank calls the functions of this file.
"""

from collections import Counter
from collections.abc import Mapping

import torch

from pipeline.data.stream import TrainStream
from pipeline.errors import SampleError
from pipeline.ranks import Ranks
from pipeline.train.collective import joined_json

MOST_SHARDS = 10
"""The most shards that a message names."""


def count_bad(ranks: Ranks, streams: Mapping[str, TrainStream]) -> dict[str, int]:
    """Maps a task to its bad samples since this process started, in one sum over ranks."""
    counts = torch.tensor([stream.bad_samples for stream in streams.values()], device=ranks.device)
    return dict(zip(streams, ranks.all_reduce(counts).tolist(), strict=True)) if streams else {}


def check_budget(ranks: Ranks, streams: Mapping[str, TrainStream], bad: Mapping[str, int]) -> None:
    """Raises SampleError, on all ranks, where a task has more bad samples than data.max_bad_share allows.
    bad: see `count_bad`."""
    for task, stream in streams.items():
        if bad[task] > stream.bad_allowed:
            raise SampleError(
                f"{_summary(ranks, task, stream)}. data.max_bad_share allows {int(stream.bad_allowed)}; mend "
                "the shards (`dtem shards verify` lists what is wrong with them), or raise it, then resume"
            )


def bad_summary(ranks: Ranks, streams: Mapping[str, TrainStream]) -> list[str]:
    """A line for each task with bad samples."""
    bad = count_bad(ranks, streams)
    return [_summary(ranks, task, stream) for task, stream in streams.items() if bad[task]]


def _summary(ranks: Ranks, task: str, stream: TrainStream) -> str:
    shards: Counter[str] = Counter()
    for shard, count in joined_json(ranks, list(stream.bad_shards.items())):
        shards[shard] += count
    named = ", ".join(f"{shard} {count}" for shard, count in shards.most_common(MOST_SHARDS))
    more = f" and {len(shards) - MOST_SHARDS} more shards" if len(shards) > MOST_SHARDS else ""
    return (
        f"{task}: {shards.total()} of {stream.seen} samples could not be read, and others took their "
        f"places ({named}{more})"
    )
