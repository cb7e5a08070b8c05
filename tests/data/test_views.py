"""Laws of several views of each sample, for every schema: one decoding, draws of their own, targets of their
own, side by side."""

import json
import os
import pickle
from collections.abc import Iterator
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from maskkit import mask_of, png
from shardkit import config, image, write_tar
from timm.data.random_erasing import RandomErasing

from pipeline.config.schema import AugmentConfig, DataConfig
from pipeline.data.lanes import Share
from pipeline.data.make.existing import index_shards
from pipeline.data.samples.protocol import DATASETS
from pipeline.data.stalls import WorkerNotes
from pipeline.data.stream import TrainStream, build_eval_loader, build_stream
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch
from pipeline.rng import seed_generators

SEED, BATCH, VIEWS = 5, 6, 3
COUNTS = (7, 1, 5)
NUM = sum(COUNTS)
ERASING = 0.5
SIZE = (15, 18)
TOKENIZER = dict(type="words", words=["a", *(f"w{n}" for n in range(NUM))], context_length=8)
COLOURS = dict(crop_scale=(0.3, 1.0), rand_augment="rand-m9-mstd0.5-inc1", random_erasing=ERASING)
OWN: dict[str, dict[str, Any]] = {
    "classification": dict(augment=AugmentConfig(**COLOURS)),
    "captioning": dict(augment=AugmentConfig(**COLOURS, hflip=0.5), tokenizer=TOKENIZER),
    "multi_label": dict(augment=AugmentConfig(**COLOURS)),
    "segmentation": dict(augment=AugmentConfig(photometric="mmseg")),
    "video_classification": dict(augment=AugmentConfig(**COLOURS), frames=2),
}
"""What random changes each schema has, all of them on."""
ALL = pytest.mark.parametrize("schema", DATASETS.names())


def write_set(folder: Path, bad: tuple[int, ...] = ()) -> Path:
    """Uneven shards of samples that every schema can read, with three captions and three frames each; the bad
    ones have no image."""
    tars, number = [], 0
    for shard, count in enumerate(COUNTS):
        members = []
        for n in range(number, number + count):
            captions = [f"w{n}" + " a" * (length + n % 2) for length in (1, 3, 7)]
            members += [
                (f"{n}.png", b"none" if n in bad else image(n, SIZE)),
                (f"{n}.cls", str(n % 3).encode()),
                *((f"{n}.{f}.png", b"none" if n in bad else image(9 * n + f, SIZE)) for f in range(3)),
                (f"{n}.seg.png", png(mask_of([0, 1, 2, 255], SIZE, seed=n))),
                (
                    f"{n}.json",
                    json.dumps({"captions": captions, "labels": [n % 3, "abc"[(n + 1) % 3]]}).encode(),
                ),
            ]
        tars.append(str(write_tar(folder / f"part-{shard:05d}.tar", members)))
        number += count
    index_shards(tars, folder, classes=["a", "b", "c"])
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def holed(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("holed"), bad=(2, 3, 9))


def data(folder: Path, schema: str, **options: Any) -> DataConfig:
    return config(folder, **{"schema": schema, "views": VIEWS} | OWN[schema] | options)


def stream(folder: Path, schema: str, *, rank: int = 0, world_size: int = 1, **options: Any) -> TrainStream:
    made = data(folder, schema, batch_size=BATCH // world_size, **options)
    return build_stream("t", made, seed=SEED, rank=rank, world_size=world_size)


def take(made: TrainStream, count: int = 5) -> list[Batch]:
    return list(islice(made, count))


def tensors(batch: Batch) -> list[torch.Tensor]:
    """Images as models read them, pixels as the stream gives them, and targets."""
    targets = [getattr(batch.targets, field.name) for field in fields(batch.targets)]
    found = [value for value in targets if isinstance(value, torch.Tensor)]
    return [batch.to("cpu").images, batch.images, *found]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def by_hand(made: TrainStream, number: int) -> Iterator[tuple[str, torch.Tensor, torch.Tensor, Any]]:
    """(key, normalised image, pixels, target) of one view of each sample, in the stream's order: decoded for
    it alone, and changed by the draws of its address."""
    reader, eraser = made.reader, RandomErasing(ERASING, mode="pixel", device="cpu")
    schema, erases = reader._schema, reader._erase is not None
    for position in range(5 * BATCH):
        at = reader.order[position]
        key = reader._reader.key(at.shard, at.sample)
        address = at.epoch, f"part-{at.shard:05d}.tar", key, *([f"view {number}"] if number else [])
        decoded = schema.decode(reader._reader.read(at.shard, at.sample))
        seed_generators(SEED, "augment", *address)
        pixels, target = schema.train(*decoded)
        normalised = Batch("t", pixels[None], None, (), reader._normalisation).to("cpu").images[0]
        for frame in normalised.view(-1, *normalised.shape[-3:]) if erases else ():
            seed_generators(SEED, "erase", *address)
            eraser(frame)
        yield key, normalised, pixels, target


@ALL
@pytest.mark.parametrize("number", range(VIEWS))
def test_a_view_is_the_sample_under_the_draws_of_its_own_address(whole, schema, number):
    """So the first one is the only one of a stream with one view, and no view changes what another sees."""
    made = stream(whole, schema)
    expected = by_hand(made, number)
    for batch in take(made):
        own = [tensor[number::VIEWS] for tensor in tensors(batch)]
        keys, normalised, pixels, targets = zip(*islice(expected, BATCH), strict=True)
        wanted = made.reader._schema.targets(targets)
        assert batch.keys[number::VIEWS] == keys
        assert same(own, [torch.stack(normalised), *tensors(Batch("t", torch.stack(pixels), wanted))[1:]])


@ALL
def test_one_view_is_the_first_of_several_and_the_others_are_others(whole, schema):
    for one, several in zip(take(stream(whole, schema, views=1)), take(stream(whole, schema)), strict=True):
        assert (one.views, several.views) == (1, VIEWS)
        assert same(tensors(one), [tensor[::VIEWS] for tensor in tensors(several)])
        grouped = several.images.unflatten(0, (-1, VIEWS))
        assert not any(torch.equal(views[0], view) for views in grouped for view in views[1:])


@ALL
def test_batches_have_one_shape_and_a_bad_sample_is_replaced_with_all_its_views(holed, schema):
    made, single = stream(holed, schema), stream(holed, schema, views=1)
    for batch, one in zip(take(made), take(single), strict=True):
        assert len(batch.images) == len(batch.keys) == BATCH * VIEWS
        assert batch.keys == tuple(key for key in one.keys for _ in range(VIEWS))
        assert same(tensors(one), [tensor[::VIEWS] for tensor in tensors(batch)])
    assert made.bad_shards == single.bad_shards and made.bad_samples > 3
    assert made.seen == single.seen == 5 * BATCH, "samples are counted, not images"


@ALL
@pytest.mark.parametrize("world_size, workers", [(1, 2), (2, 0), (3, 1)])
def test_ranks_and_workers_make_the_same_views(holed, schema, world_size, workers):
    alone = take(stream(holed, schema))
    options = dict(world_size=world_size, workers=workers)
    ranks = [take(stream(holed, schema, rank=rank, **options)) for rank in range(world_size)]
    for step, batch in enumerate(alone):
        parts = [tensors(rank[step]) for rank in ranks]
        assert sum((rank[step].keys for rank in ranks), ()) == batch.keys
        assert same([torch.cat(part) for part in zip(*parts, strict=True)], tensors(batch))


@ALL
@pytest.mark.parametrize("done", range(5))
def test_resuming_anywhere_equals_never_having_stopped(holed, schema, done):
    first, second = stream(holed, schema), stream(holed, schema)
    expected = take(first)[done:]
    third = stream(holed, schema)
    take(third, done)
    assert third.state_dict()["samples"] == done * BATCH
    second.load_state_dict(third.state_dict())
    found = take(second, 5 - done)
    assert all(same(tensors(one), tensors(other)) for one, other in zip(found, expected, strict=True))


STILL = dict(crop_scale=(1.0, 1.0), hflip=0.0)


@pytest.mark.parametrize(
    "change",
    [
        dict(crop_scale=(0.5, 0.5)),
        dict(pad=2),
        dict(hflip=None),
        dict(rand_augment="rand-m9"),
        dict(color_jitter=0.4),
        dict(color_jitter=(0.0, 0.0, 0.0, 0.1)),
        dict(random_erasing=0.9),
    ],
)
def test_views_differ_by_any_random_change_and_are_refused_without_one(whole, change):
    still, moved = AugmentConfig(**STILL), AugmentConfig(**STILL | change)
    batches = take(stream(whole, "classification", augment=moved))
    pairs = [views for batch in batches for views in batch.to("cpu").images.unflatten(0, (-1, VIEWS))]
    assert any(not torch.equal(views[0], views[1]) for views in pairs)
    assert take(stream(whole, "classification", augment=still, views=1), 1)
    for none in (still, AugmentConfig(**STILL, color_jitter=(0.0, 0.0, 0.0, 0.0))):
        with pytest.raises(ConfigError, match="data.views is 3, but no random change is on"):
            stream(whole, "classification", augment=none)


@ALL
@pytest.mark.parametrize("split", ["train", "val"])
def test_evaluation_has_one_view(whole, schema, split):
    loaders = [
        build_eval_loader("t", data(whole, schema, views=views), rank=0, world_size=1, split=split)
        for views in (1, VIEWS)
    ]
    one, several = map(list, loaders)
    assert [batch.views for batch in several] == [1] * len(one) and sum(len(b.keys) for b in several) == NUM
    assert all(same(tensors(a), tensors(b)) for a, b in zip(one, several, strict=True))


def test_each_view_draws_a_caption_of_its_sample(whole):
    drawn = [
        views
        for batch in take(stream(whole, "captioning"))
        for views in batch.targets.tokens.unflatten(0, (-1, VIEWS))
    ]
    assert all((views[:, 1] == views[0, 1]).all() for views in drawn), "the word that names the sample"
    assert any(not torch.equal(views[0], view) for views in drawn for view in views[1:])


def test_a_sample_that_loses_a_part_in_several_views_is_counted_once(whole):
    made = stream(whole, "captioning", tokenizer=TOKENIZER | dict(context_length=3))
    take(made)
    assert made.shortened_samples == 5 * BATCH


@ALL
def test_each_sample_of_an_epoch_is_read_from_its_shard_by_one_call(whole, monkeypatch, schema):
    """All that its schema reads of it, and nothing else of the shard."""
    reader, pread, reads = stream(whole, schema).reader, os.pread, []

    def counted(file: int, size: int, offset: int) -> bytes:
        reads.append((os.readlink(f"/proc/self/fd/{file}"), offset, size))
        return pread(file, size, offset)

    monkeypatch.setattr(os, "pread", counted)
    batch = reader[Share(0, NUM, range(NUM))].batch
    assert batch is not None and len(set(batch.keys)) == len(set(reads)) == len(reads) == NUM
    assert {Path(shard).suffix for shard, *_ in reads} == {".tar"}
    stored = sum(path.stat().st_size for path in whole.glob("*.tar"))
    assert sum(size for *_, size in reads) < stored


@ALL
def test_a_process_that_is_not_forked_makes_the_same_reader_anew(whole, schema):
    """From what can be sent: no open file, thread or lock is."""
    reader = stream(whole, schema).reader
    make, args = reader.__reduce__()
    sent = pickle.loads(pickle.dumps([arg for arg in args if not isinstance(arg, WorkerNotes)]))
    received = make(*(arg if isinstance(arg, WorkerNotes) else sent.pop(0) for arg in args))
    share = Share(0, BATCH, range(BATCH))
    one, other = reader[share].batch, received[share].batch
    assert one is not None and other is not None
    assert one.keys == other.keys and same(tensors(one), tensors(other))
