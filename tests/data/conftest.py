"""A small set of uneven shards, written for each test session by tarfile alone."""

from pathlib import Path

import pytest
from shardkit import samples, write_tar

COUNTS = (7, 1, 12, 5, 3)


@pytest.fixture(autouse=True)
def cache_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("DTEM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def uneven(tmp_path_factory) -> Path:
    """Shards of 7, 1, 12, 5 and 3 samples, 12x12 pixels, three classes, with a manifest."""
    from pipeline.data.make.existing import index_shards

    folder = tmp_path_factory.mktemp("uneven")
    tars = []
    for number, count in enumerate(COUNTS):
        tars.append(str(write_tar(folder / f"part-{number:05d}.tar", samples(f"s{number}", count))))
    index_shards(tars, folder, classes=["a", "b", "c"])
    return folder
