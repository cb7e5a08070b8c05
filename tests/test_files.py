"""A file that is not written as a whole is not there, and its error says which one."""

import errno
import os

import pytest

from pipeline.files import replacing


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no disk that is always full")
def test_a_full_disk_is_told_with_the_place_and_leaves_what_was_there(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(OSError, match="page.html") as caught, replacing(path):
        with open("/dev/full", "w") as full:
            full.write("new")
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == ["page.html"] and path.read_text() == "old"
