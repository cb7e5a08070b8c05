"""Heads and necks from mmseg's dicts: what is filled in, what is refused, and that a dict can neither import
nor unpickle."""

import copy

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from segheads import HEADS, NORM, SETR_PUP, UPER, fcn, segmenter

from pipeline.errors import ConfigError
from tasks.mmseg_bridge import heads

SEGMENTER = segmenter()["decode_head"]
FOUR = [48, 48, 48, 48]


def build(spec, in_channels=(48,), num_classes=5):
    return heads.build_decode_head(spec, in_channels=in_channels, num_classes=num_classes)


@pytest.mark.parametrize("name", HEADS)
def test_the_users_dicts_stay_as_they_are(name):
    specs = HEADS[name]
    before, channels = copy.deepcopy(specs), FOUR[: len(specs.get("out_indices", [-1]))]
    if "neck" in specs:
        _, channels = heads.build_neck(specs["neck"], channels)
    build(specs["decode_head"], channels)
    assert specs == before


def test_channels_follow_the_index():
    assert build(fcn(in_index=1), [8, 48]).in_channels == 48
    assert build(UPER | {"in_index": [0, 2, 3, 1]}, [8, 16, 24, 32]).in_channels == [8, 24, 32, 16]
    assert build(fcn(in_channels=48, num_classes=5)).in_channels == 48


def test_a_neck_says_what_it_gives():
    _, channels = heads.build_neck({"type": "MultiLevelNeck", "out_channels": 24, "scales": [2, 1]}, [48, 48])
    assert channels == [24, 24]
    _, channels = heads.build_neck({"type": "Feature2Pyramid"}, FOUR)
    assert channels == FOUR


def test_weights_are_drawn_as_mmseg_draws_them():
    head = build(SEGMENTER)
    weight = head.layers[0].ffn.layers[0][0].weight
    assert 0.015 < weight.std() < 0.025, "normal with a standard deviation of 0.02"


@pytest.mark.skipif(torch.cuda.is_available(), reason="SyncBN stays where there are GPUs")
def test_synchronised_norms_become_plain_ones_without_a_gpu():
    neck, _ = heads.build_neck({"type": "Feature2Pyramid"}, FOUR)
    for module in (neck, build(fcn())):
        kinds = {
            type(part).__mro__[0]
            for part in module.modules()
            if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)
        }
        assert kinds and torch.nn.SyncBatchNorm not in kinds


def test_a_new_head_trains_and_has_learned_nothing_from_its_trial():
    head = build(SETR_PUP)
    assert all(part.training for part in head.modules())
    norms = [part for part in head.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms and all(part.num_batches_tracked == 0 for part in norms)


@pytest.mark.parametrize(
    "spec, in_channels, message",
    [
        ({"type": "FCNHed", "channels": 8}, [48], "did you mean 'FCNHead'"),
        ({"type": "ResNet", "depth": 50}, [48], "unknown type 'ResNet'"),
        ({"channels": 8}, [48], r"give dict\(type="),
        ("FCNHead", [48], r"give dict\(type="),
        (fcn(in_channels=64), [48], "in_channels is 64, but here it is 48"),
        (fcn(num_classes=19), [48], "num_classes is 19, but here it is 5"),
        (fcn(in_index=4), FOUR, "in_index 4 is past the 4 features"),
        (UPER, [48], "past the 1 features"),
        (
            {key: value for key, value in UPER.items() if key != "in_index"},
            FOUR,
            r"needs in_index, for instance \[0, 1, 2, 3\]",
        ),
        ({"type": "FCNHead"}, [48], "missing 1 required positional argument: 'channels'"),
        (fcn(chanels=3), [48], "chanels"),
        (
            segmenter(channels=64, embed_dims=50)["decode_head"],
            [48],
            "embed_dim must be divisible by num_heads",
        ),
        (fcn(channels=48, num_convs=0, concat_input=False), [32], "in_channels == self.channels"),
        (fcn(out_channels=1), [48], "out_channels is 1"),
        (fcn(loss_decode={"type": "CrossEntropyLoss", "class_weight": [1.0, 2.0]}), [48], "does not take"),
        ({"type": "CCHead", "channels": 8}, [48], "operator CrissCrossAttention"),
        ({"type": "PSAHead", "channels": 8, "mask_size": (4, 4)}, [48], "operator PSAMask"),
        ({"type": "MaskFormerHead"}, FOUR, "needs mmdet"),
        ({"type": "Mask2FormerHead"}, FOUR, "needs mmdet"),
        ({"type": "PointHead", "channels": 8}, FOUR, "refines the output of another head"),
        ({"type": "OCRHead", "channels": 8, "ocr_channels": 8}, FOUR, "DTEMBackbone"),
        ({"type": "EncHead", "channels": 8, "in_index": [0, 1]}, FOUR, "gives a tuple where logits"),
    ],
    ids=lambda value: value.get("type", "typeless") if isinstance(value, dict) else None,
)
def test_a_head_that_cannot_be_is_named(spec, in_channels, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(spec, in_channels)
    assert "decode_head" in str(caught.value)


def test_a_neck_that_does_not_fit_is_named():
    with pytest.raises(ConfigError, match="neck Feature2Pyramid"):
        heads.build_neck({"type": "Feature2Pyramid", "norm_cfg": NORM}, [48, 48])
    with pytest.raises(ConfigError, match="neck MultiLevelNeck: in_channels"):
        heads.build_neck(
            {"type": "MultiLevelNeck", "in_channels": [64], "out_channels": 8, "scales": [1]}, [48]
        )
    with pytest.raises(ConfigError, match="unknown type 'FPNN'; did you mean 'FPN'"):
        heads.build_neck({"type": "FPNN"}, [48])


@pytest.mark.parametrize(
    "part",
    [
        {"type": "os.system"},
        {"loss_decode": {"type": "subprocess.run"}},
        {"norm_cfg": {"type": "builtins.exec"}},
        {"loss_decode": [{"type": "CrossEntropyLoss", "class_weight": "weights.pkl"}]},
        {"init_cfg": {"type": "Pretrained", "checkpoint": "weights.pth"}},
        {"sampler": {"type": "antigravity"}},
        {"loss_decode": {"type": "CrossEntropyLoss", "_scope_": "antigravity"}},
    ],
    ids=str,
)
def test_a_dict_can_neither_import_nor_read_a_file(part):
    with pytest.raises(ConfigError, match="unknown type|reads a file|another package"):
        build(fcn() | part)


TWO_LOSSES = [
    {"type": "CrossEntropyLoss", "class_weight": [1.0, 2.0, 1.0, 0.5, 1.0]},
    {"type": "DiceLoss", "loss_weight": 0.5},
]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss_decode": TWO_LOSSES},
        {"sampler": {"type": "OHEMPixelSampler", "thresh": 0.7, "min_kept": 9}},
    ],
)
def test_losses_and_accuracy_are_those_that_mmseg_computes(options):
    """Which needs a number from the device for the accuracy; ours does not."""
    head, mask = build(SEGMENTER | options), torch.randint(0, 5, (2, 24, 20), dtype=torch.uint8)
    mask[:, :5] = 255
    logits = head([torch.randn(2, 48, 6, 5)])
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None].long())) for label in mask]
    wanted, got = head.loss_by_feat(logits, samples), heads.head_losses(head, logits, mask)
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(
            got[name] * (100 if name == "acc_seg" else 1), value.squeeze(), rtol=1e-5, atol=1e-5
        )
