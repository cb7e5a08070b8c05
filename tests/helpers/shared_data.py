"""Data that lie beside the checkout and not in it: what needs them is skipped where they are not."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[3] / "shared"


def shared(name: str) -> Path:
    """The path of `../shared/NAME`; the test that asks is skipped, by that name, where it is not there."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"../shared/{name} is not beside the checkout")
    return path
