"""Sets with weights: an epoch has as many of their samples as the weights say, in an order as exact as that
of one set."""

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from shardkit import config, samples, write_tar

from pipeline.config.schema import DataConfig
from pipeline.data.copies import copies_of
from pipeline.data.order import SampleOrder
from pipeline.data.shards.find import load_manifest
from pipeline.data.stream import TrainStream, build_eval_loader, build_stream
from pipeline.errors import CheckpointError, ConfigError, SampleError

COUNTS = [7, 1, 12, 5, 3]
SETS = [(2, 2.5), (3, 0.5)]
EPOCH = 20 + 10
"""Samples of an epoch: 8 of the first set and 20 of the second."""


def epoch(order: SampleOrder, number: int) -> Counter[tuple[int, int]]:
    found = (order[number * order.num_samples + place] for place in range(order.num_samples))
    return Counter((at.shard, at.sample) for at in found)


def order(lanes: int = 1, weights=SETS, seed: int = 3) -> SampleOrder:
    return SampleOrder(COUNTS, seed, 2, lanes, copies_of(COUNTS, weights))


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_each_set_comes_as_often_as_it_weighs(lanes):
    made = order(lanes)
    assert made.num_samples == EPOCH
    for number in (0, 1, 7):
        found = epoch(made, number)
        first = [found[shard, sample] for shard in (0, 1) for sample in range(COUNTS[shard])]
        second = [found[shard, sample] for shard in (2, 3, 4) for sample in range(COUNTS[shard])]
        assert set(first) <= {2, 3} and sum(first) == 20
        assert set(second) <= {0, 1} and sum(second) == 10


def test_over_the_epochs_every_sample_of_a_set_comes_equally_often_up_to_rounding_of_its_shard():
    made, total = order(), Counter()
    for number in range(12 * 7 * 5 * 3):
        total += epoch(made, number)
    for shard, count in enumerate(COUNTS):
        assert len({total[shard, sample] for sample in range(count)}) == 1


def test_half_of_an_even_shard_is_the_other_half_in_the_next_epoch():
    made = SampleOrder([8], 1, 1, 1, copies_of([8], [(1, 0.5)]))
    first, second = epoch(made, 0), epoch(made, 1)
    assert not first & second and len(first + second) == 8


def test_weights_of_one_are_no_weights():
    assert copies_of(COUNTS, [(2, 1.0), (3, 1.0)]) is None


def test_what_is_fetched_ahead_are_the_shards_themselves():
    made = order(2)
    seen = {made[position].shard for position in range(EPOCH)}
    assert set(made.shards(list(range(EPOCH)))) >= seen and max(made.shards(list(range(EPOCH)))) < len(COUNTS)


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> tuple[Path, Path]:
    """Of 8 and of 12 samples, in two shards each."""
    folder = tmp_path_factory.mktemp("sets")
    for name, counts in {"a": (5, 3), "b": (6, 6)}.items():
        for number, count in enumerate(counts):
            write_tar(folder / name / f"part-{number}.tar", samples(f"{name}{number}", count))
    return folder / "a", folder / "b"


def mixed(sets, **options) -> DataConfig:
    return config([str(place) for place in sets], **{"train_weights": [2, 0.5]} | options)


def stream(sets, rank: int = 0, world_size: int = 1, batch_size: int = 11, **options) -> TrainStream:
    made = mixed(sets, **options)
    return build_stream("t", made, seed=3, rank=rank, world_size=world_size, batch_size=batch_size)


def drawn(batches) -> list[tuple[str, bytes]]:
    return [
        (key, image.numpy().tobytes())
        for batch in batches
        for key, image in zip(batch.keys, batch.images, strict=True)
    ]


def test_a_stream_gives_the_shares_and_other_pixels_for_each_copy(sets):
    made = stream(sets)
    assert made.num_samples == 22
    for pair in (drawn(islice(made, 2)), drawn(islice(stream(sets), 2, 4))):
        keys = Counter(key for key, _ in pair)
        assert sorted(keys.values()) == [1] * 6 + [2] * 8
        assert {key[0] for key, count in keys.items() if count == 2} == {"a"}
        assert len({pixels for _, pixels in pair}) == 22


@pytest.mark.parametrize(("world_size", "workers"), [(2, 0), (2, 2)])
def test_ranks_and_workers_share_the_same_order(sets, world_size, workers):
    whole = sorted(drawn(islice(stream(sets, batch_size=22), 2)))
    parts = [stream(sets, rank, world_size, 11, workers=workers) for rank in range(world_size)]
    assert sorted(pair for part in parts for pair in drawn(islice(part, 2))) == whole


def test_a_resumed_stream_goes_on_and_other_weights_are_refused(sets):
    whole = drawn(islice(stream(sets, batch_size=4), 9))
    first = stream(sets, batch_size=4)
    list(islice(first, 4))
    second = stream(sets, batch_size=4)
    second.load_state_dict(first.state_dict())
    assert drawn(islice(second, 5)) == whole[16:]
    for weights in ([2, 0.25], None):
        with pytest.raises(CheckpointError, match="other shards"):
            stream(sets, train_weights=weights).load_state_dict(first.state_dict())


def test_weights_of_one_give_the_batches_of_a_plain_list_and_of_a_pair_of_colons(sets):
    plain = drawn(islice(stream(sets, train_weights=None), 3))
    assert drawn(islice(stream(sets, train_weights=[1, 1]), 3)) == plain
    pair = config("::".join(map(str, sets)))
    assert drawn(islice(build_stream("t", pair, seed=3, rank=0, world_size=1, batch_size=11), 3)) == plain


def test_evaluation_sees_each_sample_of_all_sets_once(sets):
    for split in ("val", "train"):
        loader = build_eval_loader("t", mixed(sets), rank=0, world_size=1, split=split)
        keys = [key for batch in loader for key in batch.keys]
        assert len(keys) == len(set(keys)) == loader.num_samples == 20


@pytest.mark.parametrize("weights", [None, [], [2.0]])
@pytest.mark.parametrize("source", ["x-{3..1}.tar", []])
def test_no_shards_at_all_are_refused(source, weights):
    with pytest.raises(SampleError, match="no shards are given|1 sets are given and 0 weights"):
        load_manifest(source, weights=weights)


def test_weights_that_do_not_fit_are_refused(sets):
    with pytest.raises(SampleError, match="2 sets are given and 1 weights"):
        stream(sets, train_weights=[2])
    with pytest.raises(ConfigError, match="train_weights holds 0"):
        mixed(sets, train_weights=[1, 0])
    with pytest.raises(SampleError, match=r"by the weight 0.01 none of its 12 samples .*give 0.083 or more"):
        stream(sets, train_weights=[1, 0.01])
    assert stream(sets, train_weights=[1, 0.083]).num_samples == 8 + 1
