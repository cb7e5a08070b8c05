import re

import numpy as np
import pytest

from launch.pictures.merged_groups import BORDER, default_blocks, paint_groups


def test_one_group_is_one_colour_and_no_border():
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    painted = paint_groups(picture, np.zeros((2, 2), dtype=np.int64), (4, 4))
    assert (painted == picture.reshape(-1, 3).mean(0).round().astype(np.uint8)).all()


def test_a_group_in_two_places_has_one_colour_and_borders_stand_between_groups():
    picture = np.zeros((4, 8, 3), dtype=np.uint8)
    picture[:, 4:] = 100
    painted = paint_groups(picture, np.array([[5, 5, 9, 5]]), (4, 2))
    inside = [painted[0, 0], painted[0, 2], painted[0, 7]]
    assert all((colour == round(100 / 3)).all() for colour in inside) and (painted[0, 4] == 100).all()
    assert (painted[:, [3, 5]] == BORDER).all()


@pytest.mark.parametrize("depth, blocks", [(12, [3, 7, 11]), (3, [0, 1, 2]), (1, [0])])
def test_default_blocks_end_with_the_last(depth, blocks):
    assert default_blocks(depth) == blocks


def test_the_page_states_the_tokens_and_needs_no_other_file(trained, dtem, tmp_path):
    dtem("visualise", trained, "--num", 2, "--reductions", "1,3", "--blocks", "0,2", "--out", tmp_path)
    page = (tmp_path / "groups_digits_dtem.html").read_text()
    for block, r, left in [(0, 1, 16), (2, 1, 14), (0, 3, 14), (2, 3, 8)]:
        assert f"r {r}, block {block}: {left} tokens" in page
    assert page.count("<img") == 2 * 5 and set(re.findall(r'src="(.{15})', page)) == {"data:image/png;"}
    assert (tmp_path / "groups_digits_dtem.png").read_bytes().startswith(b"\x89PNG")


def test_a_block_or_task_that_is_not_there_is_refused(trained, dtem):
    assert "blocks are 0 to 2" in dtem("visualise", trained, "--blocks", "3", code=2)
    assert "no task 'cats'; it has digits" in dtem("visualise", trained, "--task", "cats", code=2)
