"""Laws of streams: one order for every number of ranks and workers, and a position that is one integer."""

import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import pytest
import torch
from shardkit import config
from timm.data.random_erasing import RandomErasing

from pipeline.config.schema import AugmentConfig
from pipeline.data.samples import classification  # noqa: F401
from pipeline.data.samples.protocol import DATASETS
from pipeline.data.shards.manifest import Manifest
from pipeline.data.stream import TrainStream, build_eval_loader, build_stream
from pipeline.errors import CheckpointError, ConfigError, SampleError
from pipeline.interfaces import Batch
from pipeline.rng import seed_generators

GLOBAL = 12


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


@pytest.fixture(scope="module")
def alone(uneven) -> list[Batch]:
    """Six global batches, which is over two epochs, from one rank and no worker."""
    return take(iter(stream(uneven)), 6)


def test_an_epoch_has_every_sample_once_and_batches_are_full_over_its_end(alone):
    keys = [key for batch in alone for key in batch.keys]
    assert len(keys) == 72 and len(set(keys[:28])) == len(set(keys[28:56])) == 28
    assert keys[:28] != keys[28:56]
    assert all(len(batch.images) == GLOBAL for batch in alone)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_and_workers_share_one_order_to_the_last_bit(uneven, alone, world_size, workers):
    ranks = [
        take(iter(stream(uneven, rank=rank, world_size=world_size, workers=workers)), 6)
        for rank in range(world_size)
    ]
    for step, whole in enumerate(alone):
        parts = [ranks[rank][step] for rank in range(world_size)]
        assert sum((part.keys for part in parts), ()) == whole.keys
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.targets.labels for part in parts]), whole.targets.labels)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", range(6))
def test_resuming_anywhere_equals_never_having_stopped(uneven, alone, done, workers):
    first = stream(uneven, workers=workers)
    take(iter(first), done)  # prefetched batches are not counted
    state = first.state_dict()
    assert state["samples"] == done * GLOBAL and all(type(value) is int for value in state.values())
    second = stream(uneven, workers=workers)
    second.load_state_dict(state)
    assert same(take(iter(second), 6 - done), alone[done:])


def test_a_run_goes_on_with_another_number_of_ranks(uneven, alone):
    first = stream(uneven, rank=1, world_size=2)
    take(iter(first), 2)
    rest = []
    for rank in range(3):
        second = stream(uneven, rank=rank, world_size=3)
        second.load_state_dict(first.state_dict())
        rest.append(take(iter(second), 4))
    for step, whole in enumerate(alone[2:]):
        assert sum((rest[rank][step].keys for rank in range(3)), ()) == whole.keys


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
    addresses = map(erased._reader.order.__getitem__, range(3 * GLOBAL))
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
    state = stream(uneven).state_dict()
    with pytest.raises(CheckpointError, match="other shards"):
        stream([str(uneven / "part-00000.tar"), str(uneven / "part-00002.tar")]).load_state_dict(state)


def test_a_task_without_data_or_with_members_that_do_not_fit_is_refused(uneven):
    with pytest.raises(ConfigError, match="data.train"):
        build_stream("t", config(uneven, train=None), seed=0, rank=0, world_size=1)
    with pytest.raises(ConfigError, match="did you mean 'classification'"):
        build_stream("t", config(uneven, schema="clasification"), seed=0, rank=0, world_size=1)


@pytest.mark.parametrize("name", DATASETS.names())
def test_every_schema_says_what_a_set_lacks(name):
    own = {"tokenizer": {"type": "words", "words": ["a"]}} if name == "captioning" else {}
    schema = DATASETS.build(
        name, replace(config("unused"), augment=AugmentConfig(), **own), Manifest((), (), ("a", "b"))
    )
    assert schema.missing(["txt"]) and not schema.missing(["jpg", "cls", "json", "seg.png"])
    with pytest.raises(SampleError):
        schema.decode({"txt": b"hello"})
