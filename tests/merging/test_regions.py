"""Regions and windows of a grid: they cover it for any number, and are the authors' where these have any."""

import pytest
import torch
from torch.nn import functional as F

from pipeline.merging.regions import Geometry, regions, tables, window_edges

CPU = torch.device("cpu")


@pytest.mark.parametrize("grid", [(14, 14), (7, 5), (3, 9), (1, 6), (5, 1)], ids=str)
def test_any_number_of_regions_covers_the_grid_in_reading_order(grid):
    height, width = grid
    for count in range(1, height * width + 1):
        found = regions(height, width, count)
        assert len(found) == count and found == sorted(found)
        covered = {(y, x) for tall, wide in found for y in range(*tall) for x in range(*wide)}
        assert len(covered) == height * width
        assert all(0 <= first < behind for spans in found for first, behind in spans)
        centre = tables(Geometry(height, width, count, None, 0), CPU)[2]
        assert centre.unique().numel() == count, "each has a middle of its own"


@pytest.mark.parametrize(("grid", "count", "pooled"), [((14, 14), 36, (6, 6)), ((8, 12), 24, (4, 6))])
def test_regions_of_a_grid_are_those_of_adaptive_pooling(grid, count, pooled):
    values = torch.randn(2, 5, *grid)
    members, share, _, _ = tables(Geometry(*grid, count, 7, 3), CPU)
    flat = values.flatten(2)
    largest = flat[:, :, members].amax(dim=-1)
    torch.testing.assert_close(largest, F.adaptive_max_pool2d(values, pooled).flatten(2))
    torch.testing.assert_close(flat @ share.mT, F.adaptive_avg_pool2d(values, pooled).flatten(2))


def test_windows_come_nearest_to_their_side():
    assert window_edges(14, 7) == [0, 7, 14] and window_edges(16, 7) == [0, 8, 16]
    assert window_edges(18, 7) == [0, 6, 12, 18] and window_edges(15, 7) == [0, 7, 15]
    assert window_edges(3, 7) == window_edges(3, None) == [0, 3]


def test_what_windows_see_is_what_the_authors_unfold():
    """Of 14 x 14 patches their four windows of 7 see 10 x 10 patches, from every fourth one on."""
    numbers = torch.arange(196.0).view(1, 1, 14, 14)
    unfolded = F.unfold(numbers, kernel_size=10, stride=4)[0].mT
    sees = tables(Geometry(14, 14, 36, 7, 3), CPU)[3]
    rows, columns = torch.arange(36) // 6 // 3, torch.arange(36) % 6 // 3
    window = 2 * rows + columns
    assert torch.equal(sees[:, :36], window[:, None] == window)
    for token in range(36):
        assert sees[token, 36:].nonzero().flatten().tolist() == unfolded[window[token]].tolist()


def test_one_window_sees_everything():
    assert tables(Geometry(5, 4, 6, None, 0), CPU)[3].all()
