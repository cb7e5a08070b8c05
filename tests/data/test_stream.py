"""Laws of streams: one order for every number of ranks and workers, and a position that is one integer."""

import multiprocessing
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, product

import pytest
import torch
from shardkit import config, samples, write_tar
from timm.data.random_erasing import RandomErasing

from pipeline.config.schema import AugmentConfig
from pipeline.data.lanes import Share
from pipeline.data.samples import classification  # noqa: F401
from pipeline.data.samples.protocol import DATASETS
from pipeline.data.shards.manifest import Manifest
from pipeline.data.shards.table import ShardTable
from pipeline.data.stream import TrainStream, build_eval_loader, build_stream
from pipeline.errors import CheckpointError, ConfigError, SampleError
from pipeline.interfaces import Batch
from pipeline.rng import seed_generators

GLOBAL = 12
LANES = [1, 3]
"""Of the five shards."""


def stream(folder, *, rank: int = 0, world_size: int = 1, workers: int = 0, **options) -> TrainStream:
    made = config(folder, workers=workers, **options)
    return build_stream("t", made, seed=5, rank=rank, world_size=world_size, batch_size=GLOBAL // world_size)


def take(batches: Iterator[Batch], count: int) -> list[Batch]:
    return list(islice(batches, count))


def same(one: list[Batch], other: list[Batch]) -> bool:
    return [b.keys for b in one] == [b.keys for b in other] and all(
        torch.equal(a.images, b.images) and torch.equal(a.targets.labels, b.targets.labels)
        for a, b in zip(one, other, strict=True)
    )


@pytest.fixture(scope="module", params=LANES)
def lanes(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def alone(uneven, lanes) -> list[Batch]:
    """Six global batches, which is over two epochs, from one rank and no worker."""
    return take(iter(stream(uneven, lanes=lanes)), 6)


def test_an_epoch_has_every_sample_once_and_batches_are_full_over_its_end(alone):
    keys = [key for batch in alone for key in batch.keys]
    assert len(keys) == 72 and len(set(keys[:24])) == 24
    assert Counter(Counter(keys).values()) == {3: 16, 2: 12}
    assert all(len(batch.images) == GLOBAL for batch in alone)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_and_workers_share_one_order_to_the_last_bit(uneven, alone, lanes, world_size, workers):
    ranks = [
        take(iter(stream(uneven, rank=rank, world_size=world_size, workers=workers, lanes=lanes)), 6)
        for rank in range(world_size)
    ]
    for step, whole in enumerate(alone):
        parts = [ranks[rank][step] for rank in range(world_size)]
        assert sum((part.keys for part in parts), ()) == whole.keys
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.targets.labels for part in parts]), whole.targets.labels)


@pytest.mark.parametrize(("done", "workers"), [*((done, 0) for done in range(6)), (1, 2), (3, 1)])
def test_resuming_anywhere_equals_never_having_stopped(uneven, alone, lanes, done, workers):
    first = stream(uneven, workers=workers, lanes=lanes)
    take(iter(first), done)  # prefetched batches are not counted
    state = first.state_dict()
    assert state["samples"] == done * GLOBAL and all(type(value) is int for value in state.values())
    second = stream(uneven, workers=workers, lanes=lanes)
    second.load_state_dict(state)
    assert same(take(iter(second), 6 - done), alone[done:])


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_run_of_four_ranks_goes_on_with_fewer(uneven, alone, lanes, world_size):
    first = stream(uneven, rank=1, world_size=4, lanes=lanes)
    take(iter(first), 2)
    rest = []
    for rank in range(world_size):
        second = stream(uneven, rank=rank, world_size=world_size, lanes=lanes)
        second.load_state_dict(first.state_dict())
        rest.append(take(iter(second), 4))
    for step, whole in enumerate(alone[2:]):
        assert sum((rest[rank][step].keys for rank in range(world_size)), ()) == whole.keys


def test_accumulation_and_ranks_may_change_where_their_product_stays(uneven, lanes):
    """Steps of 12 samples: three micro-batches of four on one rank, one of three on each of four ranks."""
    thrice = build_stream(
        "t", config(uneven, lanes=lanes), seed=5, rank=0, world_size=1, batch_size=GLOBAL // 3
    )
    whole = take(iter(thrice), 18)
    ranks = [take(iter(stream(uneven, rank=rank, world_size=4, lanes=lanes)), 6) for rank in range(4)]
    for step in range(6):
        keys = [key for batch in whole[3 * step : 3 * step + 3] for key in batch.keys]
        assert sorted(keys) == sorted(key for rank in ranks for key in rank[step].keys)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_bad_sample_is_replaced_by_the_next_one_of_its_lane_on_any_number_of_ranks(tmp_path, world_size):
    from pipeline.data.make.existing import index_shards

    tars = []
    for number in range(4):
        members = samples(f"s{number}", 6)
        members[4] = (members[4][0], b"no image")
        tars.append(str(write_tar(tmp_path / f"part-{number}.tar", members)))
    index_shards(tars, tmp_path, classes=["a", "b", "c"])
    streams = [stream(tmp_path, rank=rank, world_size=world_size, lanes=2) for rank in range(world_size)]
    batches = [take(iter(made), 4) for made in streams]
    keys = [sum((batches[rank][step].keys for rank in range(world_size)), ()) for step in range(4)]
    order, expected = streams[0].reader.order, []
    for step in range(4):
        whole = Share(step * GLOBAL, GLOBAL, range(GLOBAL))
        for position in order.lanes.positions(whole):
            while order[position].sample == 2:
                position = order.lanes.following(position)
            expected.append(f"s{order[position].shard}_{order[position].sample:03d}")
    assert sum(keys, ()) == tuple(expected)
    assert sum(made.bad_samples for made in streams) == 8


@pytest.mark.slow
@pytest.mark.parametrize("workers", range(4))
@pytest.mark.parametrize("num_shards", range(1, 10))
def test_any_shards_ranks_and_workers_give_every_sample_once(tmp_path, num_shards, workers):
    """Batches of 1 and 5 samples, over more than an epoch; lanes: none, some, as many as shards."""
    from pipeline.data.make.existing import index_shards

    counts = [1 + 5 * number % 7 for number in range(num_shards)]
    tars = [
        str(write_tar(tmp_path / f"part-{number}.tar", samples(f"s{number}", count)))
        for number, count in enumerate(counts)
    ]
    index_shards(tars, tmp_path, classes=["a", "b", "c"])
    total = sum(counts)
    for lanes in sorted({1, -(-num_shards // 2), num_shards}):
        for world_size, size in product(range(1, 5), (1, 5)):
            made = config(tmp_path, workers=workers, lanes=lanes)
            ranks = [
                iter(build_stream("t", made, seed=5, rank=rank, world_size=world_size, batch_size=size))
                for rank in range(world_size)
            ]
            steps = -(-total // (size * world_size))
            keys = Counter(key for rank in ranks for batch in take(rank, steps) for key in batch.keys)
            assert len(keys) == total and keys.total() == steps * size * world_size
            epochs = keys.total() // total
            assert set(keys.values()) <= {epochs, epochs + 1}


def test_augmentation_leaves_the_generators_of_the_run_alone(uneven):
    torch.manual_seed(1)
    before = torch.rand(3)
    torch.manual_seed(1)
    take(iter(stream(uneven)), 2)
    assert torch.equal(torch.rand(3), before)


def test_a_sample_is_augmented_anew_in_each_epoch(alone):
    views: dict[str, list[torch.Tensor]] = {}
    for batch in alone:
        for key, picture in zip(batch.keys, batch.images, strict=True):
            views.setdefault(key, []).append(picture)
    assert any(not torch.equal(seen[0], seen[1]) for seen in views.values() if len(seen) > 1)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 40])
def test_evaluation_reads_every_sample_once_over_the_ranks(uneven, world_size, workers):
    made = config(uneven, eval_batch_size=5, workers=workers if world_size < 4 else 0)
    loaders = [build_eval_loader("t", made, rank=rank, world_size=world_size) for rank in range(world_size)]
    keys = [key for loader in loaders for batch in loader for key in batch.keys]
    assert len(keys) == len(set(keys)) == 28 == loaders[0].num_samples
    assert [len(loader) for loader in loaders] == [len(list(loader)) for loader in loaders]


@pytest.mark.parametrize(("size", "started"), [(28, 1), (14, 2), (7, 3)])
def test_evaluation_starts_no_worker_that_has_no_batch(uneven, size, started):
    loader = build_eval_loader("t", config(uneven, workers=3, eval_batch_size=size), rank=0, world_size=1)
    before = set(multiprocessing.active_children())
    batches = loader.in_place()
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == started
    assert len(list(batches)) == 28 // size - 1


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_are_pixels_until_they_are_on_the_device(uneven, split):
    made = config(uneven, img_size=12, batch_size=28, eval_batch_size=28)
    made = replace(made, augment=replace(made.augment, random_erasing=0.0, mean=(0.1, 0.5, 0.7)))
    if split == "train":
        batch = next(iter(build_stream("t", made, seed=0, rank=0, world_size=1)))
    else:
        (batch,) = build_eval_loader("t", made, rank=0, world_size=1)
    assert batch.task == "t" and batch.images.shape == (28, 3, 12, 12) and batch.images.dtype == torch.uint8
    assert batch.targets.labels.dtype == torch.int64
    wanted, on_device = made.augment.preprocessing, batch.to("cpu")
    mean, std = torch.tensor(wanted.mean).view(3, 1, 1), torch.tensor(wanted.std).view(3, 1, 1)
    torch.testing.assert_close(on_device.images, (batch.images / 255 - mean) / std)
    assert torch.equal(on_device.to("cpu").images, on_device.images), "what is normalised stays as it is"


def test_erased_images_are_those_of_timms_eraser_on_normalised_images(uneven):
    """By the draws of a sample's address."""
    plain, erased = (
        stream(uneven, augment=AugmentConfig(random_erasing=probability)) for probability in (0.0, 0.7)
    )
    eraser, changed = RandomErasing(0.7, mode="pixel", device="cpu"), 0
    addresses = map(erased.reader.order.__getitem__, range(3 * GLOBAL))
    for whole, holed in zip(take(iter(plain), 3), take(iter(erased), 3), strict=True):
        wanted, found = whole.to("cpu").images, holed.to("cpu").images
        for image, key, at in zip(wanted, whole.keys, islice(addresses, GLOBAL), strict=True):
            seed_generators(5, "erase", at.epoch, f"part-{at.shard:05}.tar", key)
            before = image.clone()
            eraser(image)
            changed += not torch.equal(image, before)
        assert torch.equal(found, wanted) and torch.equal(whole.images, holed.images)
    assert changed > GLOBAL


def test_a_position_in_other_shards_is_refused(uneven):
    state = stream(uneven, lanes=3).state_dict()
    with pytest.raises(CheckpointError, match="order of 3 lanes and this run has 1; give data.lanes=3"):
        stream(uneven).load_state_dict(state)
    with pytest.raises(CheckpointError, match="order of 1 lane and this run has 2; give data.lanes=1"):
        stream(uneven, lanes=2).load_state_dict({"samples": 12})
    with pytest.raises(CheckpointError, match="other shards"):
        stream([str(uneven / "part-00000.tar"), str(uneven / "part-00002.tar")]).load_state_dict(state)


def test_a_task_without_data_or_with_members_that_do_not_fit_is_refused(uneven):
    with pytest.raises(ConfigError, match="data.lanes is 6 and .* has 5 shards; give at most 5"):
        build_stream("t", config(uneven, lanes=6), seed=0, rank=0, world_size=1)
    with pytest.raises(ConfigError, match="data.train"):
        build_stream("t", config(uneven, train=None), seed=0, rank=0, world_size=1)
    with pytest.raises(ConfigError, match="did you mean 'classification'"):
        build_stream("t", config(uneven, schema="clasification"), seed=0, rank=0, world_size=1)


@pytest.mark.parametrize("name", DATASETS.names())
def test_every_schema_says_what_a_set_lacks(name):
    own = {"tokenizer": {"type": "words", "words": ["a"]}} if name == "captioning" else {}
    schema = DATASETS.build(
        name,
        replace(config("unused"), augment=AugmentConfig(), **own),
        Manifest(ShardTable.of([]), (), ("a", "b")),
    )
    assert schema.missing(["txt"]) and not schema.missing(["jpg", "mp4", "cls", "json", "seg.png"])
    with pytest.raises(SampleError):
        schema.decode({"txt": b"hello"})
