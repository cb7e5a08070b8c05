"""An index of a shard that is a stranger's. Other hostile data is in tests/helpers/payloads."""

import json

import pytest

from pipeline.data.shards.index import ShardIndex


@pytest.mark.parametrize("name", ["offsets", "sizes"])
@pytest.mark.parametrize("value", [-2, 101, 2**40, 2**63, 1e300, "x", None, [], {}])
def test_an_index_cannot_point_outside_of_its_shard(name, value):
    plain = {"keys": ["a"], "suffixes": ["cls"], "offsets": [[0]], "sizes": [[1]]}
    assert ShardIndex.from_bytes(json.dumps(plain).encode(), 100).members(0) == {"cls": (0, 1)}
    with pytest.raises(ValueError):
        ShardIndex.from_bytes(json.dumps(plain | {name: [[value]]}).encode(), 100)
