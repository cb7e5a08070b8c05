"""The order of samples at 1 to 1,000 machines, by the code that trains: what each fetches, keeps and waits
for; and what a run of that size should set.

    python benchmarks/scale_sim.py --shards 100000 --nodes 8 1000

The order, the shares of ranks and the look-ahead are the pipeline's own. What is assumed beside them (images
a second, bytes of an image, the network) is in the record under `assumed`. How often runs fail is published
(failures.py).
"""

import argparse
import time
import tracemalloc
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import failures
import numpy as np
from record import write_record
from simulated_machine import Machine, Setting

from pipeline.data.lanes import Share, lanes_of
from pipeline.data.look_ahead import LookAhead
from pipeline.data.order import SampleOrder

GIB = 2**30
SEED = 0
MODELS = ("vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224", "vit_giant_patch14_224")
CLAIM = (
    "Sets of 1,281 to 100,000 shards on 1 to 1,000 machines of 8 GPUs, with the default of data.lanes: in "
    "the mean over the machines at most 1.3 shards are fetched per shard's worth of samples used, where a "
    "machine has four shards an epoch or more (so not of 1,281 shards on 1,000 machines: each has 1.28 and "
    "must fetch two); at most 1 % of the shards that a step needs are not there in time, at every size"
)
MOVED = "runs that go on with N machines and began on M"
GPUS = (8, 64, 512, 8_000)
STOPS = (2.0, 60.0)
"""Seconds for which a save stops the steps: where it is written behind them, and where it is not."""


class Watched(SampleOrder):
    """An order that notes the shards of each share that is looked at."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.looked: deque[list[int]] = deque()

    def shards(self, positions: list[int]) -> list[int]:
        found = super().shards(positions)
        self.looked.append(found)
        return found


def followed(order: Watched, nodes: int, node: int, setting: Setting) -> dict[str, float]:
    """Figures of one machine, from a start in the midst of an epoch on, over the end of one."""
    size = nodes * setting.per_step
    part = range(node * setting.per_step, (node + 1) * setting.per_step)
    epoch = -(-order.num_samples // size)
    steps = max(min(epoch, setting.steps), 128)
    first = max(0, epoch - 3 * steps // 4) * size
    share = Share(first, size, part)
    # a machine's ranks together look ahead along its part of each step
    look_ahead = LookAhead(order, setting.fetch_ahead * setting.gpus, wraps=True)
    order.looked.clear()
    machine, start = Machine(setting), 0.0
    for number in range(steps + 1):
        new = look_ahead(share.later(number))
        machine.step(order.looked.popleft(), new, len(look_ahead.in_sight()))
        if number == 0:
            start = machine.waited
            machine.forget_counts()
    used = steps * setting.per_step / setting.samples
    return {
        "fetched": machine.fetched / used,
        "late": machine.late / machine.needed,
        "kept": machine.most_kept,
        "first wait": start,
        "later waits": machine.waited,
        "seconds": machine.clock,
        "steps": steps,
    }


def of_cluster(num_shards: int, nodes: int, lanes: int, setting: Setting) -> dict[str, Any]:
    """Figures of the machines that are followed: the largest of each, and of fetches the mean too."""
    order = Watched(np.full(num_shards, setting.samples), SEED, setting.shuffle_shards, lanes)
    # a long epoch is followed on few machines
    count = min(nodes, 48 if order.num_samples < 2000 * nodes * setting.per_step else 2)
    chosen = np.random.default_rng(SEED).choice(nodes, count, replace=False).tolist()
    found = [followed(order, nodes, node, setting) for node in chosen]
    largest = {name: max(one[name] for one in found) for name in found[0]}
    kept = int(largest["kept"])
    mean = sum(one["fetched"] for one in found) / count
    demand = largest["fetched"] * setting.per_step * setting.image_kb * 8e3 / setting.seconds_of_step
    return {
        "lanes": lanes,
        "shards fetched per shard used": round(mean, 3),
        "most of a machine": round(largest["fetched"], 3),
        "share of needed shards that came late": round(largest["late"], 5),
        "shards kept": kept,
        "GiB kept": round(kept * setting.shard_bytes / GIB, 1),
        "Gbit/s of a machine": round(demand / 1e9, 2),
        "seconds until the first step": round(largest["first wait"], 1),
        "seconds waited later": round(largest["later waits"], 1),
        "steps followed": int(largest["steps"]),
        "machines followed": count,
        "samples of a machine in a step": balance(order, nodes, setting),
    }


def balance(order: SampleOrder, nodes: int, setting: Setting) -> list[int]:
    """[fewest, most] of a machine, in three steps of which one lies over the end of an epoch. Fails where the
    machines do not hold each position once."""
    size, counts = nodes * setting.per_step, []
    for start in (0, size * 7, order.num_samples // size * size):
        held = []
        for node in range(nodes):
            part = range(node * setting.per_step, (node + 1) * setting.per_step)
            held.append(order.lanes.positions(Share(start, size, part)))
        assert sorted(sum(held, [])) == list(range(start, start + size)), "each position once"
        counts += [len(positions) for positions in held]
    return [min(counts), max(counts)]


def every_sample_once(num_shards: int, setting: Setting) -> int:
    """Number of samples of an epoch, each of which was seen once. Fails where one was not."""
    lanes = lanes_of(num_shards, 64 * setting.per_step)
    order = SampleOrder(np.full(num_shards, setting.samples), SEED, setting.shuffle_shards, lanes)
    seen = np.zeros((num_shards, setting.samples), dtype=np.int8)
    for position in range(3 * order.num_samples, 4 * order.num_samples):
        at = order[position]
        seen[at.shard, at.sample] += 1
    assert (seen == 1).all(), "each sample once"
    return int(seen.sum())


def cost(num_shards: int, setting: Setting) -> dict[str, Any]:
    """Of the plan in one process, with the most lanes that a set has by itself: seconds to enter it anywhere
    and to look ahead, microseconds of a sample, MiB."""
    counts, lanes = np.full(num_shards, setting.samples), lanes_of(num_shards, 1000 * setting.per_step)

    def enter() -> tuple[SampleOrder, Share]:
        order = SampleOrder(counts, SEED, setting.shuffle_shards, lanes)
        share = Share(setting.per_step * 123_456, setting.per_step, range(setting.batch))
        order[order.lanes.positions(share)[0]]
        return order, share

    started = time.process_time()
    order, share = enter()
    entered = time.process_time() - started
    LookAhead(order, setting.fetch_ahead, wraps=True)(share)
    ahead = time.process_time() - started - entered
    positions = [order.lanes.positions(share.later(step)) for step in range(200)]
    started = time.process_time()
    for step in range(200):
        for position in order.lanes.positions(share.later(step)):
            order[position]
    a_sample = (time.process_time() - started) / sum(map(len, positions))
    tracemalloc.start()
    order, share = enter()
    LookAhead(order, setting.fetch_ahead, wraps=True)(share)
    for step in range(64):
        for position in order.lanes.positions(share.later(step)):
            order[position]
    mebibytes = tracemalloc.get_traced_memory()[0] / 2**20
    tracemalloc.stop()
    return {
        "lanes": lanes,
        "seconds of a core to enter": round(entered, 4),
        "seconds of a core to look ahead first": round(ahead, 4),
        "microseconds of a sample": round(1e6 * a_sample, 2),
        "MiB of a process": round(mebibytes, 2),
    }


def results_of(args: argparse.Namespace, setting: Setting) -> Iterator[dict[str, Any]]:
    yield {"name": "assumed", "scores": asdict(setting)}
    for num_shards in args.shards:
        name = f"{num_shards} shards"
        yield {"name": f"plan of {name}", "scores": cost(num_shards, setting)}
        for nodes in args.nodes:
            scores = of_cluster(num_shards, nodes, lanes_of(num_shards, nodes * setting.per_step), setting)
            yield {"name": f"{name}, {nodes} machines", "scores": scores}
        for nodes, begun in args.moved:
            # in micro-batches of the same size, more of them a step
            scores = of_cluster(num_shards, nodes, lanes_of(num_shards, begun * setting.per_step), setting)
            yield {"name": f"{name}, {nodes} machines, begun on {begun}", "scores": scores}
    for num_shards in args.once:
        seen = {"samples, each seen once": every_sample_once(num_shards, setting)}
        yield {"name": f"an epoch of {num_shards} shards", "scores": seen}
    written = failures.saving(args.gib)
    yield {"name": f"checkpoint of {args.gib:g} GiB, this machine's disk", "scores": written}
    for model, scores in failures.sizes(MODELS, (0.5, 2.0)).items():
        yield {"name": f"checkpoint of {model}", "scores": scores}
    for source, rate in failures.PUBLISHED.items():
        for gpus in GPUS:
            scores = {f"saves of {cost:g} s": failures.schedule(gpus, rate, cost) for cost in STOPS}
            yield {"name": f"{gpus} GPUs, {source}", "scores": scores}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=int, nargs="+", default=[1_281, 10_000, 100_000])
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 8, 16, 64, 100, 256, 1_000])
    parser.add_argument("--once", type=int, nargs="+", default=[1_281, 3_000], help="sets read whole")
    parser.add_argument("--steps", type=int, default=Setting.steps, help="most that are followed")
    parser.add_argument("--gib", type=float, default=2.0, help="of the checkpoint that is written")
    moved = [(1, 8), (8, 100)]
    parser.add_argument("--moved", nargs="*", default=moved, metavar="N,M", type=_pair, help=MOVED)
    parser.add_argument("--record", default="benchmarks/records/scale.json")
    args = parser.parse_args()
    setting = Setting(steps=args.steps)
    results = []
    for result in results_of(args, setting):
        print(f"  {result['name']}", flush=True)
        results.append(result)
    write_record(args.record, CLAIM, results, seeds=[SEED])


def _pair(text: str) -> tuple[int, int]:
    nodes, begun = text.split(",")
    return int(nodes), int(begun)


if __name__ == "__main__":
    main()
