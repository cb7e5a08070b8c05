"""What a run refuses before its first step."""

import pytest

from pipeline.errors import ConfigError
from pipeline.train.loop import train


def test_shards_with_more_classes_than_the_head_are_refused(tiny_run, tmp_path):
    config = tiny_run()
    config.tasks["digits"].head["num_classes"] = 3
    with pytest.raises(ConfigError, match="tasks.digits: the shards have 10 classes, the head has 3; give head.num_classes=10"):
        train(config)


@pytest.mark.parametrize("inside", [".", "deeper"])
def test_an_output_that_cannot_be_made_is_found_before_training(tiny_run, tmp_path, inside):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made or written to"):
        train(tiny_run(tmp_path / "file" / inside))


def test_too_few_samples_for_the_ranks_of_zero_3_are_found_before_training(tiny_run, monkeypatch):
    for name, value in dict(RANK="0", WORLD_SIZE="4").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="eval_batch_size is 10 and there are 25 .* give 6"):
        train(tiny_run(engine=dict(type="deepspeed", zero_stage=3), optim=dict(ema_decay=0.0)))
