"""The panels of one sample: the door that pages, logs and predictions use."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from launch.measure.compute import first_batch
from launch.saved.run import build, read_run
from pipeline.drawing.groups import MOST, picture_of
from pipeline.drawing.panels import Text
from pipeline.drawing.sample import draw_sample, unknown_targets
from pipeline.errors import ConfigError
from pipeline.interfaces import Task


@pytest.fixture(scope="module")
def digit(trained):
    """A run's model, and one image of its data with the names of its classes."""
    run = read_run(trained)
    batch = first_batch("digits", replace(run.config.tasks["digits"].data, eval_batch_size=1))
    return build(run), batch, run.classes("digits")


def test_predictions_come_first_and_say_whether_they_are_right(digit):
    model, batch, classes = digit
    drawn = draw_sample(model, batch, reductions=[2, 3], blocks=[1, 3], classes=classes)
    (panel,) = drawn.answers
    assert isinstance(panel.content, Text) and panel.content.heading == "true"
    label = int(batch.targets.labels[0])
    assert panel.content.references == (classes[label],)
    lines = panel.content.answers
    assert [(line.label, line.merged) for line in lines] == [
        ("unmerged", False),
        ("r 2", True),
        ("r 3", True),
    ]
    found = [
        int(model.tasks["digits"].infer(model.encoder("digits", r), batch.to("cpu"))[0].argmax())
        for r in (0, 2, 3)
    ]
    assert [line.right for line in lines] == [own == label for own in found]
    assert all(line.text.startswith(f"{classes[own]} ") for line, own in zip(lines, found, strict=True))
    assert drawn.right == all(own == label for own in found) and drawn.changed == (len(set(found)) > 1)
    counts = [(2, 1), (2, 3), (3, 1), (3, 3)]
    assert [panel.caption for panel in drawn.groups] == [
        f"r {r}, block {block}: {17 - r * block} tokens" for r, block in counts
    ]
    assert drawn.key == batch.keys[0] and drawn.panels[0] is drawn.image


def test_without_a_label_nothing_is_true_or_wrong(digit):
    model, batch, classes = digit
    unknown = replace(batch, targets=unknown_targets(model.tasks["digits"].reads, (32, 32)))
    drawn = draw_sample(model, unknown, classes=classes, blocks=())
    (panel,) = drawn.answers
    assert isinstance(panel.content, Text) and not panel.content.references and not drawn.groups
    assert drawn.right is None and [line.right for line in panel.content.answers] == [None, None]
    with pytest.raises(ConfigError, match="no image without its Task"):
        unknown_targets(Task, (32, 32))


def test_blocks_are_counted_from_1(digit):
    model, batch, _ = digit
    for block in (0, 4):
        with pytest.raises(ConfigError, match=f"--blocks {block}: .* counted from 1 to 3"):
            draw_sample(model, batch, blocks=[block])


def test_a_small_image_is_enlarged_and_a_large_one_thinned_out():
    small, large = (
        torch.arange(12, dtype=torch.uint8).reshape(3, 2, 2),
        torch.zeros(3, 30, 4000, dtype=torch.uint8),
    )
    assert (picture_of(small)[:112, :112] == small[:, 0, 0].numpy()).all()
    assert picture_of(small).shape == (224, 224, 3) and max(picture_of(large).shape) <= MOST
    assert isinstance(picture_of(large), np.ndarray)
