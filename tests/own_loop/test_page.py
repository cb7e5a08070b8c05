"""The loops of docs/own_loop.md run, and teach both the embeddings and the rest."""

import pytest
import timm
import torch
from pages import ROOT, blocks
from tiny import generator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import dtem

PLAIN, WITH_LIGHTNING = blocks(ROOT / "docs/own_loop.md", "python")


def loader():
    """Four batches of two."""
    draw = generator(3)
    samples = [(torch.randn(3, 64, 64, generator=draw), number % 10) for number in range(8)]
    return DataLoader(samples, batch_size=2)


@pytest.fixture
def small(monkeypatch):
    """timm's model of the page with two blocks."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **rest: create(name, depth=2, **rest))


def test_the_plain_loop_runs(small):
    torch.manual_seed(0)
    scope = {"loader": loader()}
    exec(PLAIN, scope)
    model = scope["model"]
    assert not model.training and all(own.isfinite().all() for own in model.parameters())


@pytest.mark.own_rounding
@pytest.mark.parametrize("accumulate", [1, 2])
def test_lightning_and_the_plain_loop_end_with_the_same_weights(small, accumulate, tmp_path, monkeypatch):
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    quiet = f"accelerator='cpu', accumulate_grad_batches={accumulate}, enable_checkpointing=False, "
    quiet += "enable_progress_bar=False, enable_model_summary=False, "
    text = WITH_LIGHTNING.replace("Trainer(", f"Trainer({quiet}")
    text = text.replace("merge_cost(self.model", "distill(self.model").replace(", self.global_step)\n", ")\n")
    torch.manual_seed(0)
    scope = {"loader": loader()}
    exec(text, scope)
    theirs = scope["trainer"].lightning_module.model

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64)
    dtem.patch(model, "dtem", reduction=2, learns=True)
    start = {name: own.clone() for name, own in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for number, (images, labels) in enumerate(loader()):
        phase = dtem.phase_of(number // accumulate, "alternate", period=2)
        phase.begin(model)
        loss = dtem.distill(model, images) if phase.embeddings else F.cross_entropy(model(images), labels)
        (loss / accumulate).backward()
        if (number + 1) % accumulate == 0:
            phase.end(model)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    moved = set()
    for name, own in model.state_dict().items():
        assert torch.equal(own, theirs.state_dict()[name]), name
        if not torch.equal(own, start[name]):
            moved.add(".metric." in name)
    assert moved == {True, False}
