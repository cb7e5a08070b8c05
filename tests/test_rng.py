import random

import numpy as np
import torch

from pipeline.rng import generator, seed_everything, seed_of


def draws() -> list[float]:
    return [
        float(torch.rand(())),
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
    ]


def test_an_address_gives_the_same_numbers_everywhere():
    assert seed_of(1, "augment", 2, "key") == 2523265466946076614, "old runs could not be continued"
    assert torch.equal(torch.rand(4, generator=generator(1, "a")), torch.rand(4, generator=generator(1, "a")))


def test_every_part_of_an_address_counts():
    seeds = {
        seed_of(*a) for a in [(1, "a"), (2, "a"), (1, "b"), ("1", "a"), (1, "a", 0), ("1a",), (1, 1), (11,)]
    }
    assert len(seeds) == 8


def test_the_global_generators_follow_their_address_whatever_was_drawn_before():
    """Half of a Gaussian pair, which two of them keep, must not be left over."""
    found = []
    for before in range(3):
        for _ in range(before):
            draws()
        seed_everything(3, "step", 0, 7)
        found.append([draws() for _ in range(2)])
    assert found[0] == found[1] == found[2]
    seed_everything(3, "step", 1, 7)
    assert not set(draws()) & set(found[0][0])
