"""Many open shards meet the limit of open files."""

import resource

import pytest

from pipeline.data.shards.open_files import MOST, SPARE, allow_open_files


@pytest.fixture
def limited():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (SPARE + 100, before[1]))
    yield lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_of_open_files_is_raised_where_many_shards_are_open(limited):
    allow_open_files(100)
    assert limited() == SPARE + 100
    allow_open_files(101)
    assert limited() > SPARE + 100
    allow_open_files(10**9)
    assert limited() == MOST or limited() == resource.getrlimit(resource.RLIMIT_NOFILE)[1]
