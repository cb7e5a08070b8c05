"""DTEMBackbone under mmengine's own Runner: the stock config of docs/mmseg.md, made small, on a data set in
ADE20K's layout."""

import json
import math
import re
from pathlib import Path
from typing import Any

import mmseg
import numpy as np
import pytest
import timm
import torch
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from PIL import Image
from safetensors.torch import save_file
from tiny import OF_IMAGES, SEED, SIZES, images
from torch import nn

import tasks.mmseg_bridge  # noqa: F401 - registers DTEMBackbone
from pipeline import build_backbone, load_weights
from pipeline.backbone.weights.files import read_state_dict
from pipeline.errors import CheckpointError, ConfigError

ROOT = Path(__file__).parents[3]
CONFIGS = Path(mmseg.__file__).parent / ".mim/configs"
PAGE = (ROOT / "docs/mmseg.md").read_text()
TINY: dict[str, Any] = dict(name="vit_tiny_patch16_224", img_size=64, timm_options=SIZES)
COLOURS = np.array(
    [[120, 120, 120], [200, 40, 40], [40, 200, 40], [40, 40, 200], [220, 220, 60]], dtype=np.uint8
)
"""Of label 0, which ADE20K ignores, and of four classes."""


def build(**options: Any):
    torch.manual_seed(SEED + 0)
    return MODELS.build(dict(type="DTEMBackbone", **TINY | options))


def scene(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Image [H, W, 3] and mask [H, W]: two squares on a ground, each class in its colour with noise, some
    pixels of label 0."""
    mask = np.full((height, width), rng.integers(1, 5), dtype=np.uint8)
    for label in rng.integers(0, 5, 2):
        top, left = rng.integers(0, height - 32), rng.integers(0, width - 32)
        mask[top : top + 32, left : left + 32] = label
    return (COLOURS[mask] + rng.integers(-30, 30, (height, width, 3))).clip(0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module")
def ade(tmp_path_factory) -> Path:
    """20 + 6 images of 64x64 pixels."""
    root, rng = tmp_path_factory.mktemp("ade"), np.random.default_rng(0)
    for part, count in (("training", 20), ("validation", 6)):
        for kind in ("images", "annotations"):
            (root / kind / part).mkdir(parents=True)
        for i in range(count):
            pixels, mask = scene(rng, 64, 64)
            Image.fromarray(pixels).save(root / "images" / part / f"{i}.jpg", quality=95)
            Image.fromarray(mask).save(root / "annotations" / part / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> Path:
    """The page's two configs, as a user would save them."""
    folder = tmp_path_factory.mktemp("configs")
    first, second = re.findall(r"```python\n(_base_.*?)```", PAGE, re.S)
    (folder / "mine.py").write_text(first.replace('"./', f'"{CONFIGS}/segmenter/'))
    (folder / "embeddings.py").write_text(second)
    return folder


def small(config_file: Path, ade: Path, work: Path, *, name: str, iterations: int, **backbone: Any) -> Config:
    """The config with four classes, little images and a tiny ViT; schedule, loops, pipelines and head stay as
    they are."""
    config = Config.fromfile(config_file)
    data = dict(data_root=str(ade), metainfo=dict(classes=("wall", "building", "sky", "floor")))
    loader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=data)
    head = dict(in_channels=48, channels=48, embed_dims=48, num_heads=3, num_layers=1, num_classes=4)
    config.merge_from_dict(
        dict(
            model=dict(
                data_preprocessor=dict(size=(64, 64)),
                backbone=TINY | dict(pretrained=False, drop_path=0.0, reduction=8) | backbone,
                decode_head=head,
                test_cfg=dict(crop_size=(64, 64), stride=(48, 48)),
            ),
            train_dataloader=loader,
            val_dataloader=loader | dict(batch_size=1),
            test_dataloader=loader | dict(batch_size=1),
            optimizer=dict(_delete_=True, type="AdamW", lr=2e-3),
            optim_wrapper=dict(optimizer=dict(_delete_=True, type="AdamW", lr=2e-3)),
            train_cfg=dict(max_iters=iterations, val_interval=iterations),
            default_hooks=dict(checkpoint=dict(interval=20), logger=dict(interval=5)),
            randomness=dict(seed=0),
            log_level="ERROR",
            work_dir=str(work),
            experiment_name=name,
            visualizer=dict(name=name),  # mmengine keeps one per name, and with it the file of the curves
        )
    )
    for pipeline in (config.train_dataloader.dataset.pipeline, config.val_dataloader.dataset.pipeline):
        for transform in pipeline:
            if transform.type in ("RandomResize", "Resize"):
                transform.scale = (256, 64)
            if transform.type == "RandomCrop":
                transform.crop_size = (64, 64)
    config.test_dataloader.dataset.pipeline = config.val_dataloader.dataset.pipeline
    return config


@pytest.fixture(scope="module")
def trained(configs, ade, tmp_path_factory) -> Runner:
    """After 30 iterations of joint training, tested once."""
    torch.set_num_threads(1)
    config = small(configs / "mine.py", ade, tmp_path_factory.mktemp("run"), name="joint", iterations=30)
    runner = Runner.from_cfg(config)
    runner.train()
    return runner


def curve(runner: Runner, name: str) -> list[float]:
    lines = (Path(runner.log_dir) / "vis_data/scalars.json").read_text().splitlines()
    return [line[name] for line in map(json.loads, lines) if name in line]


def test_a_stock_config_learns_with_only_the_backbone_swapped(trained):
    losses = curve(trained, "loss")
    assert losses[-1] < 0.8 * losses[0]
    assert curve(trained, "mIoU")[-1] > 45  # of 4 classes; chance is about 14
    assert (
        type(trained.model).__name__ == "EncoderDecoder"
        and type(trained.model.backbone).__name__ == "DTEMBackbone"
    )


def test_it_evaluates_at_another_reduction(trained):
    """r = 8 in each of three blocks takes 24 of 64 patches; -1.0 takes 48, most of them early."""
    scores = {}
    for reduction in (0, 8, (16, -1.0)):
        trained.model.backbone.set_reduction(reduction)
        scores[reduction] = trained.test()["mIoU"]
    trained.model.backbone.set_reduction(8)
    assert scores[8] == pytest.approx(curve(trained, "mIoU")[-1], abs=0.01)
    assert len(set(scores.values())) == 3 and min(scores.values()) > 35


@pytest.mark.parametrize(
    "test_cfg",
    [dict(mode="whole"), dict(mode="slide", crop_size=(48, 61), stride=(31, 40))],
    ids=lambda c: c["mode"],
)
def test_it_segments_images_of_any_size(trained, test_cfg):
    pixels, mask = scene(np.random.default_rng(5), 70, 101)
    size = dict(img_shape=(70, 101), ori_shape=(70, 101), pad_shape=(70, 101))
    image = torch.from_numpy(pixels[..., ::-1].copy()).permute(2, 0, 1)  # BGR, as mmseg loads it
    model, before = trained.model, trained.model.test_cfg
    model.test_cfg = ConfigDict(test_cfg)
    try:
        (sample,) = model.test_step(dict(inputs=[image], data_samples=[SegDataSample(metainfo=size)]))
    finally:
        model.test_cfg = before
    predicted = sample.pred_sem_seg.data[0].numpy()
    assert predicted.shape == mask.shape
    assert (predicted == mask - 1)[mask > 0].mean() > 0.7


def test_it_resumes_at_the_right_iteration(trained, configs, ade):
    config = small(configs / "mine.py", ade, Path(trained.work_dir), name="resumed", iterations=34)
    config.merge_from_dict(dict(resume=True, default_hooks=dict(logger=dict(interval=1))))
    runner = Runner.from_cfg(config)
    runner.load_or_resume()
    assert runner.iter == 30
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(runner.model.state_dict()[name], tensor), name
    runner.train()
    assert sorted(set(curve(runner, "step"))) == [31, 32, 33, 34]
    assert {
        int(state["step"]) for state in runner.optim_wrapper.optimizer.state_dict()["state"].values()
    } == {34}


def test_modular_training_moves_the_embeddings_only(configs, ade, tmp_path, trained):
    config = small(configs / "embeddings.py", ade, tmp_path, name="modular", iterations=3)
    config.load_from = str(Path(trained.work_dir) / "iter_30.pth")
    runner = Runner.from_cfg(config)
    runner.train()
    after = runner.model.state_dict()
    moved = {
        name for name, tensor in trained.model.state_dict().items() if not torch.equal(after[name], tensor)
    }
    assert moved == {name for name in after if ".metric." in name}


def test_features_equal_timms_without_merging():
    backbone = build(out_indices=(0, 2), final_norm=False).eval()
    torch.manual_seed(SEED + 0)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, **SIZES).eval()
    load_weights(backbone, vit.state_dict())
    expected = vit.get_intermediate_layers(images(), n=[0, 2], reshape=True)
    for ours, theirs in zip(backbone(images()), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    (normed,) = vit.get_intermediate_layers(images(), n=[2], reshape=True, norm=True)
    backbone.final_norm = True
    torch.testing.assert_close(backbone(images())[1], normed)


@pytest.mark.parametrize("policy", OF_IMAGES)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (61, 90), (7, 40)])
def test_any_input_gives_a_grid_that_covers_it(policy, training, size):
    backbone = build(policy=policy, reduction=1, out_indices=(-1, 0)).train(training)
    pictures = torch.randn(2, 3, *size)
    last, first = backbone(pictures)
    assert last.shape == first.shape == (2, 48, math.ceil(size[0] / 8), math.ceil(size[1] / 8))
    padded = torch.zeros(2, 3, *(math.ceil(side / 8) * 8 for side in size))
    padded[..., : size[0], : size[1]] = pictures
    if policy != "random" or not training:
        torch.testing.assert_close(backbone(padded)[0], last)


def test_training_relaxes_the_merge_so_that_a_frozen_backbone_learns_where_to_merge():
    backbone = build(policy="dtem", frozen=True)
    backbone.set_reduction(8)
    backbone.train()(images())[0].square().mean().backward()
    learned = {
        name
        for name, parameter in backbone.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }
    assert learned == {f"blocks.{i}.metric.{kind}" for i in range(3) for kind in ("weight", "bias")}


@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_of_a_frozen_backbone_is_dropped_in_training(frozen):
    options = dict(drop_path=0.5, timm_options=TINY["timm_options"] | dict(pos_drop_rate=0.5))
    backbone = build(policy="dtem", frozen=frozen, **options).train()
    with torch.no_grad():
        assert torch.equal(backbone(images())[0], backbone(images())[0]) is frozen


def test_weights_go_to_the_pipeline_and_back(trained, tmp_path):
    """mmseg's segmentor -> file -> our backbone -> file -> DTEMBackbone, and every feature is the same."""
    theirs, ours = trained.model.backbone.eval(), build_backbone(**TINY, policy="dtem", reduction=8)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    save_file(trained.model.state_dict(), tmp_path / "segmentor.safetensors")
    report = load_weights(ours, read_state_dict(tmp_path / "segmentor.safetensors"))
    assert not report.missing and all(name.startswith("decode_head.") for name in report.left)
    save_file(ours.state_dict(), tmp_path / "ours.safetensors")
    back = build(policy="dtem", reduction=8, weights=str(tmp_path / "ours.safetensors")).eval()
    assert torch.equal(back(images())[0], theirs(images())[0])


@pytest.mark.parametrize("when", ["weights", "init_cfg"])
def test_loaded_weights_survive_the_runners_initialisation(when, tmp_path):
    source = build()
    nn.init.constant_(source.norm.bias, 3.0)
    save_file(source.state_dict(), path := tmp_path / "w.safetensors")
    option = {"weights": str(path), "init_cfg": dict(type="Pretrained", checkpoint=str(path))}[when]
    head = dict(type="FCNHead", in_channels=48, channels=8, num_convs=1, concat_input=False, num_classes=4)
    segmentor = dict(
        type="EncoderDecoder", backbone=dict(type="DTEMBackbone", **TINY, **{when: option}), decode_head=head
    )
    model = MODELS.build(ConfigDict(segmentor, _scope_="mmseg"))
    model.init_weights()
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], tensor), name
    assert (model.backbone.norm.bias == 3).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(out_indices=(0, 3)), "out_indices has 3, but the backbone has 3 blocks; give -3 to 2"),
        (dict(out_indices=-4), "out_indices has -4"),
        (dict(out_indices=()), "out_indices is empty"),
        (dict(unmerge="bilinear"), "give one of copy, soft, residual"),
        (dict(pretrained="https://x/vit.pth"), "set model.pretrained=None"),
        (dict(init_cfg=dict(type="TruncNormal", layer="Linear")), "timm draws the weights"),
        (dict(init_cfg=dict(type="Pretrained", checkpoint="https://x/vit.pth")), "download it"),
        (dict(weights="a.pth", init_cfg=dict(type="Pretrained", checkpoint="b.pth")), "give one of them"),
        (dict(policy="dtem", with_cls_token=True), "with_cls_token"),
        (dict(policy="dtemm"), "did you mean 'dtem'"),
        (dict(proportional_attention="no"), "give one of always, train, never"),
    ],
)
def test_a_mistake_in_the_config_is_named(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        build(**options)


def test_a_frozen_backbone_wants_all_of_its_weights(tmp_path):
    partial = {name: tensor for name, tensor in build().state_dict().items() if name != "norm.weight"}
    save_file(partial, path := tmp_path / "partial.safetensors")
    build(policy="dtem", weights=str(path))
    with pytest.raises(CheckpointError, match="has no norm.weight"):
        build(policy="dtem", weights=str(path), frozen=True)
