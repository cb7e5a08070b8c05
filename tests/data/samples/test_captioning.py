"""Captions in a stream: which one is drawn, how batches are padded, what evaluation gets, and what is
refused."""

import json
import logging
from itertools import islice
from pathlib import Path

import pytest
import torch
from shardkit import config, image, write_tar

from pipeline.config.load import from_plain
from pipeline.config.schema import AugmentConfig, DataConfig
from pipeline.data.make.existing import index_shards
from pipeline.data.quarantine import Loaded
from pipeline.data.samples.text import build_tokenizer
from pipeline.data.stream import TrainStream, build_eval_loader, build_stream
from pipeline.errors import ConfigError, SampleError
from pipeline.interfaces import Batch

COUNTS = (7, 1, 6)
NUM = sum(COUNTS)
WORDS = ["a", "of", *(f"key{number}" for number in range(NUM)), *(f"way{number}" for number in range(5))]
TOKENIZER = {"type": "words", "words": WORDS, "context_length": 30}


def captions_of(number: int) -> list[str]:
    """Five of one image, of 4 to 20 words: no two images share one."""
    return [f"key{number} of way{way}" + " a" * (1 + (number + 3 * way) % 17) for way in range(5)]


def members(key: str, captions: object, seed: int = 0) -> list[tuple[str, bytes]]:
    return [
        (f"{key}.png", image(seed, (10 + seed % 5, 12))),
        (f"{key}.json", json.dumps({"captions": captions}).encode()),
    ]


@pytest.fixture(scope="module")
def captioned(tmp_path_factory) -> Path:
    """Three uneven shards of 14 images; image i has the key i."""
    folder, tars, number = tmp_path_factory.mktemp("captioned"), [], 0
    for shard, count in enumerate(COUNTS):
        samples = [
            member for i in range(number, number + count) for member in members(str(i), captions_of(i), i)
        ]
        tars.append(str(write_tar(folder / f"part-{shard:05d}.tar", samples)))
        number += count
    index_shards(tars, folder)
    return folder


def wanted(folder: Path, **options) -> DataConfig:
    return config(folder, **{"schema": "captioning", "tokenizer": TOKENIZER, "eval_batch_size": 4} | options)


def stream(
    folder: Path, *, seed: int = 3, rank: int = 0, world_size: int = 1, batch_size: int = NUM, **options
) -> TrainStream:
    return build_stream(
        "t", wanted(folder, **options), seed=seed, rank=rank, world_size=world_size, batch_size=batch_size
    )


def texts(batch: Batch) -> list[str]:
    tokenizer = build_tokenizer(TOKENIZER)
    return [tokenizer.decode(row) for row in batch.targets.tokens.tolist()]


def drawn(batches: list[Batch]) -> list[tuple[str, str]]:
    return [pair for batch in batches for pair in zip(batch.keys, texts(batch), strict=True)]


@pytest.fixture(scope="module")
def two_epochs(captioned) -> list[list[tuple[str, str]]]:
    """(key, caption) of each epoch, sorted."""
    return [sorted(drawn([batch])) for batch in islice(stream(captioned), 2)]


@pytest.mark.parametrize(("world_size", "workers"), [(1, 2), (2, 0), (2, 1), (7, 0)])
def test_ranks_and_workers_draw_the_same_captions(captioned, two_epochs, world_size, workers):
    ranks = [
        stream(captioned, rank=rank, world_size=world_size, batch_size=NUM // world_size, workers=workers)
        for rank in range(world_size)
    ]
    batches = [list(islice(each, 2)) for each in ranks]
    for epoch, expected in enumerate(two_epochs):
        assert sorted(drawn([each[epoch] for each in batches])) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 2},
        {"shuffle_shards": 1},
        {"img_size": 6},
        {"augment": AugmentConfig()},
        {"augment": AugmentConfig(pad=2, hflip=0.0)},
    ],
)
def test_a_caption_depends_on_seed_epoch_and_key_alone(captioned, two_epochs, options):
    size = options.get("batch_size", NUM)
    found = drawn(list(islice(stream(captioned, **options), 2 * NUM // size)))
    assert [sorted(found[:NUM]), sorted(found[NUM:])] == two_epochs


def test_a_caption_depends_on_all_three(captioned, two_epochs):
    first, second = two_epochs
    assert first != second, "epoch"
    assert sorted(drawn(list(islice(stream(captioned, seed=4), 1)))) != first, "seed"
    assert len({text.split()[2] for _, text in first}) > 1, "key"


def test_a_resumed_stream_goes_on_with_the_same_captions(captioned):
    whole = drawn(list(islice(stream(captioned, batch_size=4), 6)))
    first = stream(captioned, batch_size=4)
    list(islice(first, 2))
    second = stream(captioned, batch_size=4)
    second.load_state_dict(first.state_dict())
    assert drawn(list(islice(second, 4))) == whole[8:]


def test_every_caption_comes_about_equally_often(captioned):
    """Over 60 epochs each is expected 12 times."""
    seen: dict[tuple[str, str], int] = {}
    for pair in drawn(list(islice(stream(captioned, augment=AugmentConfig(crop_scale=(1, 1))), 60))):
        seen[pair] = seen.get(pair, 0) + 1
    assert set(seen) == {(str(number), text) for number in range(NUM) for text in captions_of(number)}
    assert 2 <= min(seen.values()) and max(seen.values()) <= 28
    ways = [sum(count for (_, text), count in seen.items() if f"way{way}" in text) for way in range(5)]
    assert all(120 < count < 216 for count in ways), f"168 of each are expected: {ways}"


def test_tokens_are_padded_to_the_longest_rounded_up(captioned):
    lengths = set()
    for batch in islice(stream(captioned, batch_size=1), 3 * NUM):
        tokens, (text,) = batch.targets.tokens, texts(batch)
        lengths.add(tokens.shape[1])
        longest = len(text.split()) + 2
        assert tokens.dtype == torch.int64 and tokens.shape == (1, min(-(-longest // 8) * 8, 30))
        assert (
            tokens[0, 0] == 1
            and tokens[0, longest - 1] == 2
            and (tokens[0, longest:] == 0).all()
            and (tokens[0, :longest] != 0).all()
        )
    assert lengths == {8, 16, 24}
    together = next(iter(stream(captioned))).targets.tokens
    assert together.shape == (NUM, 24) and ((together != 0).sum(1) < 24).any()


def test_a_context_that_is_no_multiple_is_not_left(captioned):
    batch = next(iter(stream(captioned, tokenizer=TOKENIZER | {"context_length": 19})))
    assert batch.targets.tokens.shape == (NUM, 19)


def test_training_has_no_references_and_evaluation_has_all(captioned):
    (training,) = islice(stream(captioned), 1)
    assert training.targets.references == ((),) * NUM
    found = {}
    for batch in build_eval_loader("t", wanted(captioned), rank=0, world_size=1):
        found |= dict(zip(batch.keys, zip(texts(batch), batch.targets.references, strict=True), strict=True))
    assert found == {
        str(number): (captions_of(number)[0], tuple(captions_of(number))) for number in range(NUM)
    }


def test_batches_that_move_or_are_pinned_keep_their_text(captioned, monkeypatch):
    batch = next(iter(build_eval_loader("t", wanted(captioned), rank=0, world_size=1)))
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    pinned = torch.utils.data._utils.pin_memory.pin_memory(Loaded(batch, 4, ()))
    for moved in (batch.to("meta"), pinned.batch):
        assert moved.keys == batch.keys and moved.targets.references == batch.targets.references
        assert (
            moved.targets.tokens.shape == batch.targets.tokens.shape
            and moved.targets.tokens is not batch.targets.tokens
        )
    assert (
        torch.equal(pinned.batch.targets.tokens, batch.targets.tokens)
        and batch.to("meta").targets.tokens.is_meta
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_captions_that_are_cut_keep_their_end_mark_are_counted_and_told_once(captioned, caplog, workers):
    short = {"context_length": 12}
    with caplog.at_level(logging.WARNING):
        cut = stream(captioned, tokenizer=TOKENIZER | short, workers=workers, batch_size=7)
        batches = list(islice(cut, 4))
    long = [
        text
        for batch in islice(stream(captioned, batch_size=7), 4)
        for text in texts(batch)
        if len(text.split()) > 10
    ]
    tokens = torch.cat([batch.targets.tokens for batch in batches])
    assert tokens.shape == (2 * NUM, 12) and (tokens == 2).sum() == 2 * NUM
    assert cut.shortened_samples == len(long) > 1
    (said,) = [record.message for record in caplog.records if "context_length" in record.message]
    assert "more than the 12 tokens of data.tokenizer's context_length" in said
    assert stream(captioned).shortened_samples == 0


BAD = {
    "none": ([], "the image has no caption"),
    "blank": (["a", " "], "'captions' is not a list of texts"),
    "text": ("a", "'captions' is not a list of texts"),
    "half": (["a \ud800"], "json does not read"),
}


@pytest.mark.parametrize("key", BAD)
def test_an_image_without_captions_is_left_out_and_named(tmp_path, caplog, key):
    captions, reason = BAD[key]
    write_tar(
        tmp_path / "part-0.tar", members("good", ["a"]) + members(key, captions) + members("too", ["of"])
    )
    with caplog.at_level(logging.WARNING):
        (batch,) = build_eval_loader("t", wanted(tmp_path), rank=0, world_size=1)
    assert batch.keys == ("good", "too")
    assert any(
        f"sample '{key}': " in record.message and reason in record.message for record in caplog.records
    )
    with pytest.raises(SampleError, match=f"'{key}'"):
        list(build_eval_loader("t", wanted(tmp_path, max_bad_samples=0), rank=0, world_size=1))


def test_a_sample_or_a_set_without_the_member_is_named(tmp_path, caplog):
    write_tar(tmp_path / "part-0.tar", members("good", ["a"]) + members("bare", ["a"])[:1])
    with caplog.at_level(logging.WARNING):
        (batch,) = build_eval_loader("t", wanted(tmp_path), rank=0, world_size=1)
    assert (
        batch.keys == ("good",)
        and "'bare': of the members that captioning reads it has png; captioning needs json" in caplog.text
    )
    write_tar(tmp_path / "other" / "part-0.tar", [("a.png", image()), ("a.cls", b"0")])
    with pytest.raises(SampleError, match=r"members cls, png; schema 'captioning' needs json"):
        stream(tmp_path / "other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": None}, "schema 'captioning' needs data.tokenizer"),
        ({"tokenizer": {"words": ["a"]}}, "tokenizer has no type; give one of .*words"),
        ({"tokenizer": {"type": "word", "words": ["a"]}}, "unknown tokenizer 'word'; did you mean 'words'"),
        ({"tokenizer": {"type": "words", "vocabulary": ["a"]}}, "its options: words, context_length"),
        (
            {"augment": AugmentConfig(mixup=0.2, short_side=9)},
            r"does not use data.augment.mixup=0.2, data.augment.short_side=9",
        ),
        ({"schema": "classification"}, r"schema 'classification' does not use data.tokenizer="),
    ],
)
def test_options_that_do_not_fit_the_schema_are_refused(captioned, options, message):
    with pytest.raises(ConfigError, match=message):
        stream(captioned, **options)


def test_the_task_reads_the_tokens_of_its_data():
    def run(**head: object) -> dict:
        data = dict(schema="captioning", train="x", tokenizer=dict(type="words", words=("a", "b")))
        return dict(
            backbone=dict(name="x"),
            train=dict(steps=1),
            output="o",
            tasks=dict(c=dict(type="captioning", data=data, head=head)),
        )

    task = from_plain(run(tokenizer=dict(type="words", words=["a", "b"]))).tasks["c"]
    assert task.head["tokenizer"] == task.data.tokenizer
    for other in (dict(type="words", words=["b", "a"]), dict(type="clip"), None):
        with pytest.raises(ConfigError, match="tasks.c: head.tokenizer is not data.tokenizer"):
            from_plain(run(tokenizer=other))
    with pytest.raises(ConfigError, match="tasks.c: head.tokenizer is not data.tokenizer"):
        from_plain(
            run(tokenizer=dict(type="words", words=["a", "b"])), ["tasks.c.data.tokenizer.context_length=9"]
        )
