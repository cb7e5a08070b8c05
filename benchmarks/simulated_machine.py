"""A machine of a simulated cluster: what is assumed of it, and what it fetches, keeps and waits for. For
`scale_sim.py`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """What is assumed."""

    gpus: int = 8
    """Of a machine, each with a rank."""
    batch: int = 128
    """Samples of a rank in a step."""
    samples: int = 1000
    """Of a shard."""
    image_kb: float = 110.0
    images_per_second: float = 1000.0
    """Of a GPU."""
    gbit: float = 25.0
    """Gbit/s from the storage to a machine."""
    fetch_ahead: int = 8192
    """data.fetch_ahead"""
    shuffle_shards: int = 8
    """data.shuffle_shards"""
    steps: int = 3_000
    """Most steps that are followed."""

    @property
    def per_step(self) -> int:
        """Samples of a machine in a step."""
        return self.gpus * self.batch

    @property
    def shard_bytes(self) -> float:
        return self.samples * self.image_kb * 1000

    @property
    def seconds_of_step(self) -> float:
        return self.batch / self.images_per_second

    @property
    def seconds_of_fetch(self) -> float:
        """Of one shard, where the whole line fetches it."""
        return self.shard_bytes * 8 / (self.gbit * 1e9)


@dataclass
class Machine:
    """What one machine does with its shares, whose shards come one after the other in the order of need.

    The cache has room for what is in sight and no more. That is leased, so a shard is fetched once for as
    long as it is in sight, and again when it comes into sight again.
    """

    setting: Setting
    clock: float = 0.0
    line_free: float = 0.0
    fetched: int = 0
    needed: int = 0
    late: int = 0
    waited: float = 0.0
    most_kept: int = 0

    def __post_init__(self) -> None:
        self.arrives: dict[int, float] = {}

    def step(self, needed: list[int], new: list[int], in_sight: int) -> None:
        """Trains on shards `needed`, after those that are new in sight were asked for. in_sight: how many
        are."""
        for shard in new:
            self.line_free = max(self.line_free, self.clock) + self.setting.seconds_of_fetch
            self.arrives[shard] = self.line_free
        self.fetched += len(new)
        self.most_kept = max(self.most_kept, in_sight)
        there = max(self.arrives[shard] for shard in needed)
        self.needed += len(needed)
        self.late += sum(self.arrives[shard] > self.clock for shard in needed)
        self.waited += max(0.0, there - self.clock)
        self.clock = max(self.clock, there) + self.setting.seconds_of_step

    def forget_counts(self) -> None:
        self.fetched = self.needed = self.late = 0
        self.waited = 0.0
