"""A label means the same in training, in evaluation and in a checkpoint."""

import numpy as np
import pytest
import torch
from maskkit import mask_of, png
from shardkit import config, image, write_tar

from pipeline.data.make.existing import index_shards
from pipeline.data.samples.class_names import Labels, agreed, tell_renumbered
from pipeline.data.stream import build_eval_loader
from pipeline.errors import ConfigError

ACCEPTED = {
    "the same": (("a", "b"), ("a", "b"), Labels(("a", "b"), (0, 1))),
    "some, in another order": (("c", "a"), ("a", "b", "c"), Labels(("a", "b", "c"), (2, 0))),
    "nothing is known": (("a", "b"), (), Labels(("a", "b"), (0, 1))),
    "no names to evaluate on": (("0", "1"), ("a", "b", "c"), Labels(("a", "b", "c"), (0, 1))),
    "no names to train on": (("a", "b"), ("label 1", "label 2", "label 3"), Labels(("a", "b"), (0, 1))),
    "folders that are called by numbers": (
        ("0", "2"),
        ("0", "1", "10", "2"),
        Labels(("0", "1", "10", "2"), (0, 3)),
    ),
    "names that occur twice, alike": (("a", "a"), ("a", "a"), Labels(("a", "a"), (0, 1))),
    "no classes": ((), (), Labels((), ())),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_labels_are_matched_by_name(case):
    own, known, expected = ACCEPTED[case]
    assert agreed(own, known, "x") == expected


@pytest.mark.parametrize("own", [("zz_b", "a"), ("a", "b", "c"), ("a", "a")])
def test_names_that_are_not_trained_on_are_refused_with_the_setting(own):
    with pytest.raises(
        ConfigError,
        match=r"^x: \d of its \d classes \('.*'\) are not among those that are trained on \('a', 'b'\)",
    ):
        agreed(own, ("a", "b"), "x")


def named_set(folder, classes: list[str], labels: list[int]):
    """One sample of each label, with a mask all of that label but for one ignored row; its key is the class's
    name."""
    members = []
    for label in labels:
        mask = mask_of([label], (12, 12)).copy()
        mask[0] = 255
        members += [(f"{classes[label]}.png", image(label)), (f"{classes[label]}.cls", str(label).encode())]
        members += [(f"{classes[label]}.seg.png", png(mask))]
    index_shards([str(write_tar(folder / "0.tar", members))], folder, classes=classes)
    return str(folder)


@pytest.mark.parametrize("schema", ["classification", "segmentation"])
def test_shards_with_fewer_classes_are_read_with_the_labels_of_training(tmp_path, schema, caplog):

    tell_renumbered.cache_clear()
    names = ["a", "b", "c", "d"]
    train, val = (
        named_set(tmp_path / "train", names, [0, 1, 2, 3]),
        named_set(tmp_path / "val", ["d", "b"], [0, 1]),
    )
    plain = config(train).augment if schema == "classification" else type(config(train).augment)()
    made = config(train, val=val, schema=schema, augment=plain, eval_batch_size=2, allow_overlap=False)
    loader = build_eval_loader("t", made, rank=0, world_size=1)
    (batch,) = loader
    assert loader.classes == tuple(names) and batch.keys == ("d", "b")
    assert (
        "tasks.t.data.val: 1 of its 2 classes have other numbers" in caplog.text
        and "(d is 3 there, 0 here)" in caplog.text
    )
    if schema == "classification":
        assert batch.targets.labels.tolist() == [3, 1]
    else:
        assert [sorted(np.unique(mask)) for mask in batch.targets.mask.numpy()] == [[3, 255], [1, 255]]
        assert batch.targets.mask.dtype == torch.uint8
    (told,) = build_eval_loader("t", made, rank=0, world_size=1, classes=["b", "d"])
    assert told.keys == ("d", "b")
    with pytest.raises(ConfigError, match="tasks.t.data.val: 1 of its 2 classes .'d'. are not among"):
        build_eval_loader("t", made, rank=0, world_size=1, classes=["a", "b", "c"])
