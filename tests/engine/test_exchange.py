"""Tensors in pieces on all ranks become whole ones on rank 0."""

import random

import pytest
import torch
from ranks import together

from pipeline.engine.exchange import Piece, collect


@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize("backwards", [False, True])
def test_pieces_become_whole_as_they_were_when_they_were_collected(world_size, backwards):
    """Pieces of any size, some of them empty, and of tensors that no two ranks share alike."""
    draw = random.Random(world_size)
    shapes = {"a": torch.Size([7, 3]), "b": torch.Size([2]), "c": torch.Size([]), "d": torch.Size([40])}
    wholes = {name: torch.randn(shape) for name, shape in shapes.items()}
    owned = {}
    for name, whole in wholes.items():
        cuts = sorted(draw.randrange(whole.numel() + 1) for _ in range(world_size - 1))
        spans = list(zip([0, *cuts], [*cuts, whole.numel()], strict=True))
        owned[name] = spans[::-1] if backwards else spans

    def collected(rank, ranks):
        pieces = {
            name: Piece(span[rank][0], wholes[name].flatten()[slice(*span[rank])].clone())
            for name, span in owned.items()
        }
        put_together = collect(ranks, pieces, shapes)
        for piece in pieces.values():
            piece.tensor.zero_()
        return put_together()

    found, *others = together(world_size, collected)
    assert found.keys() == wholes.keys() and others == [{}] * (world_size - 1)
    assert all(torch.equal(found[name], whole) for name, whole in wholes.items())
