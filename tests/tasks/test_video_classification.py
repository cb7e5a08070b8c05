"""Classification of clips, beside what holds of every task (tests/laws): several views of a video, and which
backbones and data it goes with."""

import pytest
import torch
from tiny import clips, tiny_video_vit, tiny_vit
from tinyrun import tiny_clips_plain, tiny_plain

from pipeline.backbone.build import model_facts
from pipeline.backbone.weights.preprocessing import complete_data
from pipeline.config.load import from_plain
from pipeline.config.schema import DataConfig
from pipeline.data.stream import build_eval_loader
from pipeline.data.targets import ClipTargets
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch
from pipeline.model import TASKS, build_model
from pipeline.plan.resolve import resolve


def task_of(policy: str = "tome"):
    backbone = tiny_video_vit(policy).eval()
    return backbone, TASKS.build("video_classification", backbone, num_classes=5).eval()


def plain(folder, output, *, frames=8, kind="video_classification", data=None):
    made = tiny_clips_plain(folder, output, data=data)
    own = made["tasks"]["digits"]
    own["type"] = own["data"]["schema"] = kind
    made["backbone"] |= dict(frames=frames)
    return made


@torch.no_grad()
def test_the_probabilities_of_several_views_are_averaged():
    backbone, task = task_of()
    views = torch.stack([clips(3, seed=seed) for seed in range(4)], dim=1)
    targets = ClipTargets(torch.tensor([0, 1, 2]))
    found = task.infer(backbone, Batch("t", views, targets))
    each = [task.infer(backbone, Batch("t", own, targets)).softmax(-1) for own in views.unbind(1)]
    torch.testing.assert_close(found.exp(), sum(each) / 4)
    one = task.infer(backbone, Batch("t", views[:, :1], targets))
    torch.testing.assert_close(one.softmax(-1), each[0])
    tallies = task.tally(found, Batch("t", views, targets))
    expected = -(sum(each) / 4).gather(1, targets.labels[:, None]).log().sum()
    torch.testing.assert_close(tallies["loss"], expected)


def test_a_single_frame_many_times_is_another_clip_than_its_neighbours():
    """The order of frames is seen: a model that averaged frames would say the same of both."""
    backbone, task = task_of("none")
    clip = clips(1)
    with torch.no_grad():
        one, turned = (task.logits(backbone(own)) for own in (clip, clip.flip(1)))
    assert (one - turned).abs().max() > 1e-4


def resolved(made):
    config = from_plain(made)
    facts = model_facts(config.backbone)
    return resolve(complete_data(config, facts), 1, facts, {"digits": 40}).config


def test_frames_are_those_of_the_backbone_where_none_are_given(moving_digits, tmp_path):
    assert resolved(plain(moving_digits, tmp_path)).tasks["digits"].data.frames == 8
    assert resolved(plain(moving_digits, tmp_path, frames=4)).tasks["digits"].data.frames == 4
    images = tiny_plain(moving_digits, tmp_path)
    assert resolved(images).tasks["digits"].data.frames is None


def test_frames_that_are_not_the_backbones_are_refused_before_a_model_is_built(moving_digits, tmp_path):
    with pytest.raises(ConfigError, match="tasks.digits.data.frames is 6 and backbone.frames is 8; give"):
        resolved(plain(moving_digits, tmp_path, data=dict(frames=6)))
    with pytest.raises(
        ConfigError, match="tasks.digits.data.frames is 6, and the backbone reads images; give"
    ):
        resolved(plain(moving_digits, tmp_path, frames=1, data=dict(frames=6)))


def test_tasks_and_backbones_that_read_other_things_are_refused_by_name(moving_digits, tmp_path):
    with pytest.raises(
        ConfigError, match="tasks.digits read clips, and the backbone images; give backbone.frames"
    ):
        build_model(from_plain(plain(moving_digits, tmp_path, frames=1)))
    with pytest.raises(
        ConfigError, match="tasks.digits read images, and the backbone clips; leave backbone.fr"
    ):
        build_model(from_plain(plain(moving_digits, tmp_path, kind="classification")))
    config = resolved(plain(moving_digits, tmp_path, kind="classification"))
    with pytest.raises(ConfigError, match="reads single images, and data.frames is 8"):
        build_eval_loader("digits", config.tasks["digits"].data, rank=0, world_size=1)


def test_images_are_no_targets_of_clips(digits, tmp_path):
    model = build_model(resolved(plain(digits, tmp_path)))
    data = DataConfig(schema="classification", val=str(digits), img_size=32, workers=0, allow_overlap=True)
    loader = build_eval_loader("digits", data, rank=0, world_size=1)
    with pytest.raises(ConfigError, match="gives ClassificationTargets, which no head reads.*ClipTargets"):
        model.check_data({"digits": loader})


def test_a_head_of_images_reads_no_clips():
    assert not TASKS.build("classification", tiny_vit("none"), num_classes=3).reads_clips
