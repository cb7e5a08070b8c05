import pytest
import torch
from tiny import SEED

from pipeline.errors import ConfigError
from tasks.captions import retrieval
from tasks.captions.retrieval import class_features, recalls

COUNTS = torch.tensor([2, 1, 5, 3, 1, 4, 2])


def features(seed: int):
    """In float64: ranks are compared, and the table is multiplied in parts of another shape."""
    torch.manual_seed(SEED + seed)
    image = torch.nn.functional.normalize(torch.randn(len(COUNTS), 4, dtype=torch.float64), dim=-1)
    text = image.repeat_interleave(COUNTS, dim=0) + torch.randn(int(COUNTS.sum()), 4, dtype=torch.float64)
    return image, torch.nn.functional.normalize(text, dim=-1)


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_recall_is_that_of_the_sorted_table(chunk, monkeypatch):
    monkeypatch.setattr(retrieval, "CHUNK", chunk)
    monkeypatch.setattr(retrieval, "RANKS", (1, 2, 5))
    image, text = features(0)
    owners = [i for i, count in enumerate(COUNTS.tolist()) for _ in range(count)]
    table = (image @ text.T).tolist()
    found = recalls(image, text, COUNTS)
    for k in (1, 2, 5):
        best = [sorted(range(len(owners)), key=lambda j, row=row: -row[j])[:k] for row in table]
        hits = sum(any(owners[j] == i for j in row) for i, row in enumerate(best))
        assert found[f"image_to_text_R@{k}"] == pytest.approx(hits / len(COUNTS))
        best = [sorted(range(len(COUNTS)), key=lambda i, j=j: -table[i][j])[:k] for j in range(len(owners))]
        hits = sum(owner in row for owner, row in zip(owners, best, strict=True))
        assert found[f"text_to_image_R@{k}"] == pytest.approx(hits / len(owners))
    assert 0 < found["text_to_image_R@1"] < found["text_to_image_R@5"]


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_features_that_say_nothing_find_nothing(value):
    """Where all is equally near, and where nothing is a number."""
    count = 12
    found = recalls(
        torch.full((count, 3), value), torch.full((count, 3), value), torch.ones(count, dtype=torch.int64)
    )
    assert set(found.values()) == {0.0}


def test_a_class_is_the_mean_direction_of_its_captions():
    directions = {
        "a dog": [1.0, 0.0],
        "the dog": [0.0, 1.0],
        "a big cat": [0.6, 0.8],
        "the big cat": [0.6, 0.8],
    }
    found = class_features(
        lambda texts: torch.tensor([directions[text] for text in texts]),
        ["dog", "big_cat"],
        ["a {}", "the {}"],
    )
    assert found.tolist() == [pytest.approx([0.5**0.5, 0.5**0.5]), pytest.approx([0.6, 0.8])]
    with pytest.raises(ConfigError, match="one place {} for the name"):
        class_features(lambda texts: torch.zeros(len(texts), 2), ["dog"], ["a {}", "a dog"])
