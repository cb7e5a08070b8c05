"""A patched model trains inside the loops of others: losses and weights are those of a plain loop, also when
the training was halted and goes on from a checkpoint in another model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from learner import STEPS, learner, optimizer_of, plain_loop, samples, with_accelerate
from tiny import generator
from tiny_hugging_face import library_model
from torch.utils.data import DataLoader

import dtem

LEARNER = Path(__file__).parents[1] / "helpers/learner.py"


@pytest.fixture(scope="module")
def plain():
    losses, weights = plain_loop()
    start = learner().state_dict()
    moved = [name for name, own in weights.items() if not torch.equal(own, start[name])]
    assert len(losses) == STEPS and sum(".metric." in name for name in moved) >= 4
    return losses, weights


def is_plain(found, plain):
    (losses, weights), (wanted, own) = found, plain
    assert losses == pytest.approx(wanted, abs=1e-5)
    assert weights.keys() == own.keys()
    torch.testing.assert_close(weights, own, atol=1e-5, rtol=1e-4)


def test_lightning_trains_it_as_a_plain_loop_does(plain, tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.learner, self.losses = learner(), []

        def training_step(self, batch, _):
            loss = self.learner(*batch)
            self.losses.append(float(loss.detach()))
            return loss

        def configure_optimizers(self):
            return optimizer_of(self)

    def trained(epochs, checkpoint=None):
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        module = Module()
        trainer.fit(module, DataLoader(samples(), batch_size=None), ckpt_path=checkpoint)
        return trainer, module

    trainer, first = trained(1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, second = trained(2, tmp_path / "half.ckpt")
    assert second.learner.model.reduction == 4
    is_plain((first.losses + second.losses, second.learner.state_dict()), plain)


def test_accelerate_trains_it_as_a_plain_loop_does(plain, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    is_plain(with_accelerate(tmp_path, accelerator), plain)


@pytest.mark.slow
def test_two_processes_of_accelerate_train_as_one(tmp_path):
    pytest.importorskip("accelerate")
    program = [str(LEARNER), str(tmp_path)]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([sys.executable, *launch, *program], capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    is_plain(torch.load(tmp_path / "found.pt", weights_only=True), plain_loop(priced=False))


def test_the_trainer_of_transformers_trains_it_as_a_plain_loop_does(tmp_path):
    pytest.importorskip("accelerate")
    draw = generator(5)
    images, labels = torch.randn(4, 3, 64, 64, generator=draw), torch.randint(7, (4,), generator=draw)
    rows = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]

    def patched():
        model = dtem.patch(library_model("ViTForImageClassification"), reduction=4, learns=True).train()
        return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    model, optimizer = patched()
    for _ in range(3):
        optimizer.zero_grad()
        model(pixel_values=images, labels=labels).loss.backward()
        optimizer.step()
    other, optimizer = patched()
    same_rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    options = transformers.TrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=4, max_grad_norm=0, use_cpu=True, report_to=[]
    )
    trainer = transformers.Trainer(other, options, train_dataset=rows, optimizers=(optimizer, same_rate))
    trainer.train()
    start, own = patched()[0].state_dict(), model.state_dict()
    assert any(".metric." in name and not torch.equal(own[name], start[name]) for name in own)
    torch.testing.assert_close(other.state_dict(), own, atol=1e-5, rtol=1e-4)
