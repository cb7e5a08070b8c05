"""Windows, scales, flips and metrics of segmentation are those of MMSegmentation, whose own code is what they
are compared with."""

import importlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import generator
from torch.nn import functional as F

from pipeline.data.targets import MaskTargets
from pipeline.errors import ConfigError
from pipeline.interfaces import Batch
from tasks.masks.inference import Inference
from tasks.masks.metrics import confusion, scores_of
from tasks.masks.windows import classify, count_confusion, input_size, segment, windows
from tasks.shared.options import from_options

PATCH, CLASSES = (8, 4), 5
WEIGHTS = torch.randn(CLASSES, 3 * PATCH[0] * PATCH[1], generator=generator(0))
SLIDE = Inference(mode="slide", crop_size=(24, 20), stride=(17, 9))
VIEWS = Inference(scales=[0.5, 1.0, 1.75], flip=True)


@pytest.fixture(scope="module")
def mmseg():
    """Their classes; the import takes seconds, which tests of others need not wait for."""
    importlib.import_module("tasks.mmseg_bridge")  # sees to it that mmseg can be imported
    from mmseg.evaluation import IoUMetric
    from mmseg.models import EncoderDecoder
    from mmseg.models.segmentors.seg_tta import SegTTAModel

    return SimpleNamespace(IoUMetric=IoUMetric, EncoderDecoder=EncoderDecoder, SegTTAModel=SegTTAModel)


def close(got, wanted):
    """Logits here are sums of some hundred products, of size 20: kernels differ by 1e-5."""
    torch.testing.assert_close(got, wanted, atol=2e-4, rtol=1e-4)


def encode(images):
    """Patches as a backbone without blocks: the images' sides have to divide by the patch."""
    assert images.shape[-2] % PATCH[0] == images.shape[-1] % PATCH[1] == 0
    columns = F.unfold(images, PATCH, stride=PATCH).mT
    return columns, (images.shape[-2] // PATCH[0], images.shape[-1] // PATCH[1])


def logits(output):
    columns, grid = output
    return (columns @ WEIGHTS.to(columns).mT).mT.unflatten(2, grid)


def resized(values, size):
    return F.interpolate(values, size, mode="bilinear", align_corners=False)


def pixels(images, out_size, inference):
    return torch.stack(list(segment(encode, logits, images, out_size, inference, PATCH)))


def padded_logits(images):
    """What is expected of one window: zeros beside it until its patches are full, and their pixels cut off
    again."""
    (height, width), (patch_h, patch_w) = images.shape[-2:], PATCH
    full = F.pad(images, (0, -width % patch_w, 0, -height % patch_h))
    return resized(logits(encode(full)), full.shape[-2:])[..., :height, :width]


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (5, 3), (8, 41)])
@pytest.mark.parametrize("out", [None, (50, 31)])
def test_a_whole_image_is_one_padded_window(size, out):
    images = torch.randn(3, 3, *size)
    close(pixels(images, out or size, Inference()), resized(padded_logits(images), out or size))


@pytest.mark.parametrize("size", [(24, 20), (41, 29), (90, 77), (10, 60), (60, 10), (7, 6)])
def test_sliding_windows_are_those_of_mmseg(size, mmseg):
    images = torch.randn(2, 3, *size)
    settings = SimpleNamespace(crop_size=SLIDE.crop_size, stride=SLIDE.stride)
    theirs = SimpleNamespace(
        test_cfg=settings, out_channels=CLASSES, encode_decode=lambda crop, metas: padded_logits(crop)
    )
    wanted = mmseg.EncoderDecoder.slide_inference(theirs, images, [{}])
    close(pixels(images, size, SLIDE), wanted)


def test_all_windows_of_a_batch_are_encoded_at_once():
    seen = []

    def watched(images):
        seen.append(len(images))
        return encode(images)

    list(segment(watched, logits, torch.randn(2, 3, 41, 29), (41, 29), SLIDE, PATCH))
    assert seen == [2 * len(windows((41, 29), SLIDE)[0])] == [2 * 2 * 2]


def test_views_are_merged_as_in_mmseg(mmseg):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    image, out, views = torch.randn(1, 3, 30, 44), (37, 50), []
    for scale in VIEWS.scales:
        size = tuple(int(side * scale + 0.5) for side in image.shape[-2:])
        small = image if scale == 1 else F.interpolate(image, size, mode="bilinear", antialias=True)
        views += [
            resized(padded_logits(small), out)[0],
            resized(padded_logits(small.flip(-1)).flip(-1), out)[0],
        ]
    samples = [SegDataSample(seg_logits=PixelData(data=view), metainfo={"img_path": ""}) for view in views]
    theirs = SimpleNamespace(module=SimpleNamespace(out_channels=CLASSES))
    (merged,) = mmseg.SegTTAModel.merge_preds(theirs, [samples])
    ours = pixels(image, out, VIEWS)[0]
    first, second = ours.topk(2, dim=0).values
    clear = first - second > 1e-5  # else a rounding decides
    assert clear.float().mean() > 0.99 and torch.equal(
        ours.argmax(0)[clear], merged.pred_sem_seg.data.squeeze()[clear]
    )
    close(ours.sum(0), torch.ones(out))


@pytest.mark.parametrize("inference", [Inference(), SLIDE, VIEWS], ids=["whole", "slide", "views"])
def test_an_image_alone_is_what_it_is_in_a_batch(inference):
    images = torch.randn(3, 3, 41, 29)
    together = pixels(images, (50, 31), inference)
    close(together, torch.cat([pixels(image[None], (50, 31), inference) for image in images]))


def test_with_flip_the_mirror_image_gets_the_mirrored_answer():
    images, inference = torch.randn(1, 3, 32, 44), Inference(flip=True)
    close(pixels(images.flip(-1), (32, 44), inference).flip(-1), pixels(images, (32, 44), inference))


def random_case(seed, present):
    """Predictions and labels [4, 40, 30] of 5 classes, of which only `present` are labelled, with a fifth of
    the pixels ignored."""
    draw = np.random.default_rng(seed)
    mask = draw.choice(present, (4, 40, 30)).astype(np.uint8)
    mask[draw.random(mask.shape) < 0.2] = 255
    right = draw.random(mask.shape) < 0.6
    said = np.where(right & (mask != 255), mask, draw.choice([0, 1, 2, 3], mask.shape))
    return torch.from_numpy(said).long(), torch.from_numpy(mask)


@pytest.mark.parametrize("present", [[0, 1, 2, 3, 4], [0, 2], [3]], ids=str)
def test_scores_are_those_of_mmsegs_metric(present, mmseg):
    said, mask = random_case(1, present)
    areas = [
        mmseg.IoUMetric.intersect_and_union(p, m.long(), CLASSES, 255)
        for p, m in zip(said, mask, strict=True)
    ]
    theirs = mmseg.IoUMetric.total_area_to_metrics(
        *(sum(area) for area in zip(*areas, strict=True)), ["mIoU"]
    )
    halves = [confusion(said[part], mask[part], CLASSES) for part in (slice(0, 1), slice(1, 4))]
    ours = scores_of(halves[0] + halves[1])
    assert ours["aAcc"] == pytest.approx(float(theirs["aAcc"]), abs=1e-6)
    for name in ("IoU", "Acc"):
        assert ours[f"m{name}"] == pytest.approx(float(np.nanmean(theirs[name])), abs=1e-6)
        for i, value in enumerate(theirs[name]):
            assert ours[f"{name}/{i}"] == (None if np.isnan(value) else pytest.approx(float(value), abs=1e-6))
    assert ours["Acc/4"] is None or 4 in present


def test_a_table_of_nothing_is_not_applicable():
    scores = scores_of(confusion(torch.zeros(3, 3).long(), torch.full((3, 3), 255), CLASSES))
    assert set(scores.values()) == {None} and {"aAcc", "mAcc", "mIoU", "IoU/4", "Acc/0"} <= set(scores)


def test_a_batch_is_counted_at_the_size_of_its_masks():
    """In float64, as a rounding may decide which class is first."""
    images, mask = (
        torch.randn(2, 3, 30, 44).double(),
        torch.randint(0, CLASSES, (2, 61, 87), dtype=torch.uint8),
    )
    mask[0, :7] = 255
    batch = Batch("scenes", images, MaskTargets(mask))
    table = count_confusion(list(classify(encode, logits, batch, Inference(), PATCH)), mask, CLASSES)
    said = resized(padded_logits(images), (61, 87)).argmax(1)
    assert torch.equal(table, confusion(said, mask, CLASSES)) and table.dtype == torch.int64
    assert table.sum() == (mask != 255).sum() and torch.equal(
        table.sum(1), torch.bincount(mask[mask != 255].long(), minlength=CLASSES)
    )


@pytest.mark.parametrize(
    "options, said",
    [
        ({"mode": "sliding"}, "give 'whole' or 'slide'"),
        ({"crop_size": 32}, "mode is 'whole'"),
        ({"mode": "slide", "crop_size": 32}, "inference.stride is None"),
        ({"mode": "slide", "crop_size": [32, 0], "stride": 8}, "crop_size is"),
        ({"mode": "slide", "crop_size": [32, 16], "stride": 20}, "leaves gaps"),
        ({"scales": []}, "give factors above 0"),
        ({"scales": [1, -1]}, "give factors above 0"),
        ({"flip": "yes"}, "give true or false"),
        ({"windows": 3}, "no option 'windows'"),
    ],
    ids=str,
)
def test_an_inference_that_cannot_be_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        from_options(Inference, "inference", options)


def test_options_come_as_plain_data():
    assert from_options(Inference, "inference", None) == Inference()
    plain = {"mode": "slide", "crop_size": 16, "stride": [8, 4]}
    assert from_options(Inference, "inference", plain).slide == ((16, 16), (8, 4))


@pytest.mark.parametrize("size", [(24, 20), (23, 37), (40, 61)])
@pytest.mark.parametrize(
    "inference", [Inference(), SLIDE, VIEWS, replace(SLIDE, scales=[1.75, 1.0])], ids=repr
)
def test_the_size_of_the_first_window_is_known_without_inference(size, inference):
    sizes = []

    def noted(images):
        sizes.append(tuple(images.shape[-2:]))
        return encode(images)

    next(segment(noted, logits, torch.zeros(1, 3, *size), size, inference, PATCH))
    assert input_size(size, inference, PATCH) == sizes[0]
