"""What an image and its mask promise after random changes: they stay on one another, at any size."""

from itertools import islice

import pytest
import torch
from maskkit import dense, mask_of, masked_shards, png
from shardkit import image
from torch.nn import functional as F

from pipeline.config.schema import AugmentConfig
from pipeline.data.augment.images_with_masks import JointCrop, resize_for_evaluation
from pipeline.data.members.masks import IGNORED
from pipeline.data.stream import TrainStream, build_eval_loader, build_stream
from pipeline.errors import SampleError
from pipeline.interfaces import Batch
from pipeline.rng import seed_generators

STEP = 20
"""Between the grey values that labels are painted with."""


def painted(mask: torch.Tensor) -> torch.Tensor:
    """The picture whose every pixel says its label."""
    return (mask * STEP).expand(3, *mask.shape).contiguous()


def blocks(height: int, width: int, block: int = 14, seed: int = 0) -> torch.Tensor:
    cells = torch.randint(
        0, 12, (-(-height // block), -(-width // block)), generator=torch.Generator().manual_seed(seed)
    )
    return cells.repeat_interleave(block, 0).repeat_interleave(block, 1)[:height, :width].to(torch.uint8)


def inside(mask: torch.Tensor) -> torch.Tensor:
    """Pixels whose 5x5 neighbours all have their label: bilinear interpolation has not mixed them."""
    framed = F.pad(mask.float()[None], [2] * 4, value=-1)
    return (F.max_pool2d(framed, 5, 1) == -F.max_pool2d(-framed, 5, 1))[0]


@pytest.mark.parametrize("size", [32, (24, 40), (40, 24)], ids=str)
@pytest.mark.parametrize("stored", [(60, 80), (33, 90), (20, 20)], ids=str)
@pytest.mark.parametrize(
    "augment", [{}, {"short_side": 40}, {"resize_range": (1, 1)}, {"hflip": 1.0}], ids=str
)
def test_the_mask_stays_on_its_picture(size, stored, augment):
    crop = JointCrop(
        dense("x", img_size=size, augment={"interpolation": "bilinear", "photometric": False} | augment)
    )
    fill, seen = torch.tensor([round(255 * channel) for channel in AugmentConfig().preprocessing.mean]), 0
    for seed in range(25):
        seed_generators(seed)
        picture, mask = crop(painted(source := blocks(*stored, seed=seed)), source)
        assert picture.shape[1:] == mask.shape == (size if isinstance(size, tuple) else (size, size))
        assert picture.dtype == mask.dtype == torch.uint8
        sure, padding = inside(mask), mask == IGNORED
        assert torch.equal(picture[0][sure & ~padding], mask[sure & ~padding] * STEP)
        seen += int((sure & ~padding).sum())
        assert (picture[:, padding] == fill[:, None]).all()
        kept = (~padding).nonzero()
        assert padding.logical_not().sum() == (kept.amax(0) + 1).prod(), (
            "what is padded lies at the right and below"
        )
    assert seen > 500


def test_edges_of_mask_and_picture_lie_on_the_same_pixel():
    """Half way between black and white is where the mask changes: a mask that is cut by its pixels' corners
    would be off by up to one."""
    mask = (torch.arange(90) // 15 % 2).to(torch.uint8).expand(90, 90).contiguous()
    crop = JointCrop(
        dense(
            "x",
            img_size=64,
            augment={"photometric": False, "interpolation": "bilinear", "max_class_share": 1.0},
        )
    )
    wrong = edges = 0
    for seed in range(60):
        seed_generators(seed)
        picture, cut = crop(mask.mul(254).expand(3, 90, 90).contiguous(), mask)
        wrong += int(((picture[0] > 127) != cut)[cut != IGNORED].sum())
        edges += int((cut[:, 1:] != cut[:, :-1])[(cut[:, 1:] != IGNORED)].sum())
    assert edges > 5000 and wrong < 0.1 * edges


def test_every_scale_of_the_range_is_drawn_and_none_beyond():
    """Stripes of ten pixels come out between five and twenty wide."""
    mask = (torch.arange(400) // 10 % 2).to(torch.uint8).expand(400, 400).contiguous()
    crop = JointCrop(dense("x", img_size=100, augment={"photometric": False}))
    widths = []
    for seed in range(60):
        seed_generators(seed)
        row = crop(painted(mask), mask)[1][50]
        changes = (row[1:] != row[:-1]).nonzero().flatten()
        widths.append(float((changes[-1] - changes[0]) / (len(changes) - 1)))
    assert 4.8 < min(widths) < 6 and 17 < max(widths) < 20.5


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (9, 200)], ids=str)
@pytest.mark.parametrize("augment", [{}, {"short_side": 64}], ids=str)
def test_odd_pictures_fill_a_crop_too(shape, augment):
    crop = JointCrop(dense("x", img_size=(16, 32), augment=augment))
    for seed in range(5):
        seed_generators(seed)
        picture, mask = crop(torch.zeros(3, *shape, dtype=torch.uint8), torch.zeros(shape, dtype=torch.uint8))
        assert picture.shape == (3, 16, 32) and mask.shape == (16, 32) and (mask == 0).any()


def largest_share(mask: torch.Tensor) -> float:
    counts = mask[mask != IGNORED].long().bincount()
    return float(counts.max() / counts.sum())


def test_a_crop_of_one_class_is_drawn_again():
    """A class in a corner: crops without it are the rule, and the exception where the share of one class is
    limited."""
    mask = torch.zeros(120, 120, dtype=torch.uint8)
    mask[:40, :40] = 1
    shares = {}
    for limit in (1.0, 0.75):
        crop = JointCrop(
            dense(
                "x",
                img_size=32,
                augment={"photometric": False, "max_class_share": limit, "resize_range": (1, 1)},
            )
        )
        shares[limit] = []
        for seed in range(100):
            seed_generators(seed)
            shares[limit].append(largest_share(crop(painted(mask), mask)[1]))
    over = {limit: sum(share > 0.75 for share in found) for limit, found in shares.items()}
    assert over[1.0] > 80 and over[0.75] < over[1.0] - 30


@pytest.mark.parametrize("label", [3, IGNORED])
def test_a_picture_of_one_class_or_none_is_taken_as_it_is(label):
    mask = torch.full((50, 50), label, dtype=torch.uint8)
    assert (
        JointCrop(dense("x", img_size=16, augment={"resize_range": (1, 1)}))(painted(mask), mask)[1] == label
    ).all()


def test_photometric_changes_the_colours_alone():
    mask = blocks(40, 40)
    views = {}
    for on in (False, True):
        seed_generators("colours")
        views[on] = JointCrop(dense("x", img_size=32, augment={"photometric": on, "resize_range": (1, 1)}))(
            painted(mask), mask
        )
    assert torch.equal(views[False][1], views[True][1]) and not torch.equal(views[False][0], views[True][0])


@pytest.mark.parametrize(
    ("short_side", "expected"), [(None, (30, 45)), (60, (60, 90)), (20, (20, 30)), (30, (30, 45))]
)
def test_evaluation_keeps_the_whole_picture(short_side, expected):
    picture = painted(blocks(30, 45))
    resized = resize_for_evaluation(picture, AugmentConfig(short_side=short_side))
    assert resized.shape == (3, *expected)
    assert torch.equal(resized, picture) == (expected == (30, 45))


def test_a_picture_that_would_fill_the_memory_is_a_bad_sample():
    with pytest.raises(SampleError, match="512x51200000 pixels at augment.short_side=512"):
        resize_for_evaluation(torch.zeros(3, 1, 100_000, dtype=torch.uint8), AugmentConfig(short_side=512))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return masked_shards(tmp_path_factory.mktemp("masked"))


def batches(made: TrainStream, count: int = 5) -> list:
    return list(islice(iter(made), count))


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_ranks_and_workers_draw_the_same_crops(shards, world_size, workers):
    alone = batches(build_stream("t", dense(shards), seed=5, rank=0, world_size=1, batch_size=4))
    options = {"seed": 5, "world_size": world_size, "batch_size": 4 // world_size}
    ranks = [
        batches(build_stream("t", dense(shards, workers=workers), rank=rank, **options))
        for rank in range(world_size)
    ]
    for step, whole in enumerate(alone):
        assert (
            whole.images.shape == (4, 3, 8, 10)
            and whole.targets.mask.shape == (4, 8, 10)
            and whole.targets.mask.dtype == torch.uint8
        )
        assert torch.equal(torch.cat([rank[step].images for rank in ranks]), whole.images)
        assert torch.equal(torch.cat([rank[step].targets.mask for rank in ranks]), whole.targets.mask)


def test_evaluation_keeps_the_size_of_the_mask(shards):
    (batch,) = build_eval_loader(
        "t", dense(shards, eval_batch_size=9, augment={"short_side": 24}), rank=0, world_size=1
    )
    assert batch.images.shape == (9, 3, 24, 24) and batch.targets.mask.shape == (9, 12, 12)
    assert set(batch.targets.mask.unique().tolist()) == {0, 1, 2, 3, IGNORED}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("what", ["images", "masks"])
def test_samples_of_different_sizes_are_evaluated_by_size(tmp_path, workers, what):
    """Each once, and as alone."""
    masked_shards(tmp_path, {"wide": {"png": image(1, (24, 24)), "seg.png": png(mask_of([0, 1], (24, 24)))}})
    augment = {"short_side": 12} if what == "masks" else {}

    def batches(size: int) -> list[Batch]:
        made = dense(tmp_path, eval_batch_size=size, workers=workers, augment=augment)
        return list(build_eval_loader("t", made, rank=0, world_size=1))

    def samples(found: list[Batch]) -> list[tuple[str, bytes, bytes]]:
        return sorted(
            (key, image.numpy().tobytes(), mask.numpy().tobytes())
            for batch in found
            for key, image, mask in zip(batch.keys, batch.images, batch.targets.mask, strict=True)
        )

    together, single = batches(10), batches(1)
    assert sorted(len(batch.keys) for batch in together) == [1, 9] and len(single) == 10
    assert samples(together) == samples(single) and len({key for key, _, _ in samples(single)}) == 10
    assert sorted(batch.targets.mask.shape[-1] for batch in single) == [12] * 9 + [24]
