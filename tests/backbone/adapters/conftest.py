import pytest
from fake_hub import running
from tiny import tiny_vit

from pipeline.backbone.adapters.public import save_adapter


@pytest.fixture(scope="session")
def taught():
    """A model with embeddings that nobody else draws."""
    return tiny_vit("dtem", seed=3).eval()


@pytest.fixture
def folder(taught, tmp_path):
    return save_adapter(taught, tmp_path / "adapter", license="apache-2.0")


@pytest.fixture
def hub(tmp_path):
    with running(tmp_path / "cache") as hub:
        yield hub
