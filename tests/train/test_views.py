"""A run with several views of each sample counts samples, and belongs to its number of views."""

import json

import pytest

from pipeline.errors import CheckpointError
from pipeline.model import MultiTaskModel
from pipeline.train.loop import train
from pipeline.train.storage import read_checkpoint


def test_a_run_counts_samples_and_not_their_views(tiny_run, tmp_path, monkeypatch, capfd):
    """8 samples in a step are 16 images that the model sees."""
    forward, seen = MultiTaskModel.forward, []

    def watched(self, batch, spec):
        seen.append((batch.views, len(batch.images)))
        return forward(self, batch, spec)

    monkeypatch.setattr(MultiTaskModel, "forward", watched)
    train(tiny_run(data=dict(views=2)))
    assert (
        "batch 8 x 2 views (8 a rank x 1 ranks x 1 accumulated), 0.6 epochs of 80" in capfd.readouterr().err
    )
    assert seen == [(2, 16)] * 6
    facts = read_checkpoint(tmp_path / "run/checkpoints/step_00000006").facts
    assert facts["global_batch"] == {"digits": 8} and facts["progress"]["samples"] == {"digits": 48}
    assert facts["streams"]["digits"]["samples"] == 48
    lines = list(map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines()))
    assert [line["epoch/digits"] for line in lines if "epoch/digits" in line][-1] == pytest.approx(0.6)
    assert [line["val/digits/samples"] for line in lines if "val/digits/samples" in line] == [25]
    with pytest.raises(CheckpointError, match=r"another run.*\n.*tasks.digits.data.views: 2 there, 1 here"):
        train(tiny_run())
