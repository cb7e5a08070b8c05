"""Runs that were really trained, for all commands that start from one."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from tinyrun import tiny_plain, tiny_tasks_plain

from launch import cli
from pipeline.config.load import from_plain
from pipeline.data.make.digits.scenes import CLASSES, MASK_CLASSES, digit_scenes_jobs
from pipeline.data.make.write import write_shards
from pipeline.train.loop import train


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """Shards whose 9 val images are of 32, 44 and 72 pixels; the middle ones do not divide by the patch of
    8."""
    folder = tmp_path_factory.mktemp("scenes")
    jobs = digit_scenes_jobs(train=16, val=3, size=32, shard_size=16)
    jobs += [
        replace(digit_scenes_jobs(train=0, val=3, size=size, shard_size=3)[-1], name=f"val-{size:05d}.tar")
        for size in (44, 72)
    ]
    write_shards(jobs, folder, classes=CLASSES, mask_classes=MASK_CLASSES)
    return folder


@pytest.fixture(scope="session")
def segmenter(scenes, tmp_path_factory) -> Path:
    """The folder of a segmentation run of 4 steps on crops of 32 pixels; else as `trained`."""
    plain = tiny_plain(scenes, tmp_path_factory.mktemp("segmenter") / "run", train=dict(steps=4))
    data = plain["tasks"].pop("digits")["data"]
    data |= dict(schema="segmentation", eval_batch_size=1, augment={})
    head = dict(
        num_classes=11,
        decode_head=dict(type="FCNHead", channels=8, num_convs=1, kernel_size=1, concat_input=False),
    )
    return train(from_plain(plain | dict(tasks=dict(scenes=dict(type="segmentation", head=head, data=data)))))


@pytest.fixture(scope="session")
def captioner(digits, tmp_path_factory) -> Path:
    """The folder of a captioning run of 4 steps, with features to compare, whose decoder looks at the merged
    tokens; else as `trained`."""
    plain = tiny_plain(digits, tmp_path_factory.mktemp("captioner") / "run", train=dict(steps=4))
    words = (
        "a big zero one two three four five six seven eight nine and to the left right of above "
        "below with it digits photo".split()
    )
    tokenizer = dict(type="words", words=words, context_length=20)
    tower = dict(width=16, heads=2, layers=1)
    model = dict(embed_dim=16, text_cfg=tower, multimodal_cfg=tower)
    head = dict(route="direct", model=model, tokenizer=tokenizer, generation=dict(max_length=6, min_length=6))
    data = plain["tasks"].pop("digits")["data"] | dict(schema="captioning", tokenizer=tokenizer)
    return train(from_plain(plain | dict(tasks=dict(scenes=dict(type="captioning", head=head, data=data)))))


@pytest.fixture(scope="session")
def three_tasks(digits, tmp_path_factory) -> Callable[[str], Path]:
    """`three_tasks(kind)`: the folder of a run of 4 steps with such metric embeddings, trained once; `masks`
    has r 1, the others r 2."""

    @cache
    def run(embedding: str) -> Path:
        merging = dict(policy="dtem", reduction=2, embedding=embedding, adapter_rank=2)
        own = dict(masks=dict(merging=dict(reduction=1)))
        optim = dict(lr=1e-2, ema_decay=0.0, warmup_steps=0)  # so that the tasks' own parts come to differ
        output = tmp_path_factory.mktemp("tasks") / embedding
        return train(
            from_plain(
                tiny_tasks_plain(
                    digits, output, merging=merging, train=dict(mode="joint", steps=4), optim=optim, tasks=own
                )
            )
        )

    return run


@pytest.fixture
def dtem(capsys):
    """Runs a command line; what it printed, with its errors where it is to fail."""

    def call(*argv: object, code: int = 0) -> str:
        assert cli.main([str(part) for part in argv]) == code, capsys.readouterr().err
        said = capsys.readouterr()
        return said.out if code == 0 else said.err + said.out

    return call
