"""Agglomerative clustering against its definition: the distance of two clusters, from all pairs of their
members."""

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.merging.policies import POLICIES
from pipeline.merging.policies.atc import LINKAGES, clusters

JOINS = {"average": lambda found: sum(found) / len(found), "complete": max, "single": min}


def by_definition(distance, r, linkage):
    left = [[i] for i in range(len(distance))]
    for _ in range(r):
        pairs = [(a, b) for b in range(len(left)) for a in range(b)]
        a, b = min(
            pairs,
            key=lambda pair: JOINS[linkage]([distance[i][j] for i in left[pair[0]] for j in left[pair[1]]]),
        )
        left[a] += left.pop(b)
    return {frozenset(group) for group in left}


def found(cluster):
    return {frozenset(i for i, c in enumerate(cluster) if c == one) for one in cluster}


def random_distances(batch, num):
    points = torch.randn(batch, num, 5, dtype=torch.float64)
    return 1 - torch.nn.functional.cosine_similarity(points[:, :, None], points[:, None], dim=-1)


@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.parametrize("r", [1, 5, 9])
def test_the_nearest_clusters_merge(linkage, r):
    distance = random_distances(3, 12)
    own = torch.arange(12).expand(3, -1)
    cluster = clusters(distance, r, linkage, own)
    assert not torch.equal(distance, distance.masked_fill(torch.eye(12, dtype=torch.bool), torch.inf))
    for image in range(3):
        wanted = by_definition(distance[image].tolist(), r, linkage)
        assert found(cluster[image].tolist()) == wanted and len(wanted) == 12 - r
        assert all(min(group) in cluster[image] for group in wanted)


def test_an_image_stops_at_its_quota():
    distance, own = random_distances(2, 8), torch.arange(8).expand(2, -1)
    cluster = clusters(distance, 4, "average", own, torch.tensor([4, 2]))
    assert torch.equal(cluster[0], clusters(distance, 4, "average", own)[0])
    assert torch.equal(cluster[1], clusters(distance, 2, "average", own)[1])


def test_linkages_differ_where_they_should():
    """After the first pair, its distance to the third token is .3 or .5, or .4 in the mean; that of the third
    and the fourth lies between."""
    for apart, last in ((0.35, {"single"}), (0.45, {"single", "average"})):
        distance = torch.tensor(
            [[[0, 0.1, 0.3, 0.9], [0.1, 0, 0.5, 0.9], [0.3, 0.5, 0, apart], [0.9, 0.9, apart, 0]]]
        )
        own = torch.arange(4)[None]
        joined = {name for name in LINKAGES if clusters(distance, 2, name, own)[0].tolist() == [0, 0, 0, 3]}
        assert joined == last


def test_another_linkage_is_refused():
    with pytest.raises(ConfigError, match="atc: linkage is 'ward'; give one of average, complete, single"):
        POLICIES.build("atc", linkage="ward")
