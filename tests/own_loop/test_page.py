"""The loops of docs/own_loop.md run, and teach both the embeddings and the rest."""

import socket

import own_loop_worker
import pytest
import timm
import torch
from deepspeed_launch import environment
from forks import Fork
from pages import ROOT, blocks
from safetensors.torch import load_file
from tiny import generator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

import dtem

PLAIN, WITH_DDP, WITH_LIGHTNING, WITH_TRANSFORMERS = blocks(ROOT / "docs/own_loop.md", "python")


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


def plain_loop(accumulate=1):
    """The loop of the page, with a loss in which nothing is drawn: the model, and its state before."""
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
    return model, start


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

    model, start = plain_loop(accumulate)
    moved = set()
    for name, own in model.state_dict().items():
        assert torch.equal(own, theirs.state_dict()[name]), name
        if not torch.equal(own, start[name]):
            moved.add(".metric." in name)
    assert moved == {True, False}


@pytest.fixture
def in_float64():
    """No choice of pairs depends there on how something is rounded."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(usual)


def test_two_ranks_end_as_one_with_all_samples(small, in_float64, tmp_path):
    """By DDP alone, and by Lightning's trainer: each rank has half of each batch."""
    pytest.importorskip("lightning")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    words = own_loop_worker.__file__, tmp_path, WITH_DDP, WITH_LIGHTNING
    ranks = [
        Fork(
            *words,
            env=environment() | world | {"RANK": rank, "LOCAL_RANK": rank},
            cwd=tmp_path,
            imports=["lightning"],
        )
        for rank in "01"
    ]
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.err for rank in ranks]
    model, start = plain_loop()
    wanted = model.state_dict()
    for kind in ("ddp", "lightning"):
        found, moved = load_file(tmp_path / f"{kind}.safetensors"), set()
        assert found.keys() == wanted.keys()
        for name, own in wanted.items():
            torch.testing.assert_close(found[name], own, rtol=1e-6, atol=1e-9)
            if not torch.equal(own, start[name]):
                moved.add(".metric." in name)
        assert moved == {True, False}


class Ordered(IterableDataset):
    def __init__(self, images, labels):
        self.samples = [
            {"pixel_values": own, "labels": label} for own, label in zip(images, labels, strict=True)
        ]

    def __iter__(self):
        return iter(self.samples)


def test_the_trainer_of_transformers_and_the_plain_loop_end_alike(in_float64, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    images, labels = (torch.cat(own) for own in zip(*loader(), strict=True))
    text = WITH_TRANSFORMERS.replace("merge_cost(model", "distill(model").replace(
        '["pixel_values"], self.state.global_step)', '["pixel_values"])'
    )
    quiet = "lr_scheduler_type='constant', optim='adamw_torch', learning_rate=1e-3, weight_decay=0.0, "
    quiet += "max_steps=4, disable_tqdm=True, report_to=[], save_strategy='no', output_dir='out', "
    text = text.replace("TrainingArguments(", f"TrainingArguments({quiet}")
    text = text.replace("num_train_epochs=1, ", "").replace("image_size=64", "image_size=64, num_labels=10")
    torch.manual_seed(0)
    scope = {"dataset": Ordered(images, labels)}
    exec(text, scope)
    theirs = scope["model"]

    torch.manual_seed(0)
    before = text.partition("class PhasedTrainer")[0]
    ours: dict = {}
    exec(before, ours)
    model = ours["model"]
    start = {name: own.clone() for name, own in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for step in range(4):
        part = slice(2 * step, 2 * step + 2)
        phase = dtem.phase_of(step, "alternate", period=2)
        phase.begin(model)
        if phase.embeddings:
            loss = dtem.distill(model, images[part])
        else:
            loss = model(pixel_values=images[part], labels=labels[part]).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        phase.end(model)
        optimizer.step()
        optimizer.zero_grad()
    moved = set()
    for name, own in model.state_dict().items():
        torch.testing.assert_close(theirs.state_dict()[name], own, rtol=1e-6, atol=1e-9)
        if not torch.equal(own, start[name]):
            moved.add(".metric." in name)
    assert moved == {True, False}
