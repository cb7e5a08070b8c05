"""A user's training of a patched model of timm's, as a plain loop and with accelerate.

As a program it is one process of accelerate: `python learner.py FOLDER` trains two steps, saves, loads into
another model, trains two more, and the main process writes FOLDER/found.pt: losses and weights.
"""

import sys
from pathlib import Path
from typing import Any

import timm
import torch
from tiny import SIZES, generator
from torch import Tensor, nn
from torch.nn import functional as F

import dtem
from pipeline.interfaces import LogProbs
from pipeline.merging.unmerge import unmerge_state
from pipeline.objectives.merge_cost import MergeCost, drawn_log_likelihood

STEPS, BATCH = 4, 4


class Learner(nn.Module):
    """The loss of labels behind the differentiable merge; priced: and merge_cost of all blocks, whose mean
    over a batch is none of those over its parts."""

    def __init__(self, model: nn.Module, priced: bool):
        super().__init__()
        self.model, self.priced = model, priced

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(self.model(images), labels)
        return loss + self._merge_cost(images) if self.priced else loss

    def _merge_cost(self, images: Tensor) -> Tensor:
        model: Any = self.model
        output = model.encode(images, reduction=0, relaxed=False, merge_points_from=0)
        logits = model.forward_head(unmerge_state(output.final))
        draws = torch.get_rng_state()
        torch.manual_seed(0)  # trainers draw what they like in between
        likelihood = drawn_log_likelihood(LogProbs(logits.log_softmax(dim=-1)))
        torch.set_rng_state(draws)
        points = output.merge_points[:-1]
        return MergeCost().cost_of(points, likelihood, range(len(points)), [4] * len(points), 64)


def learner(priced: bool = True) -> Learner:
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_patch16_224", num_classes=5, img_size=64, **SIZES)
    return Learner(dtem.patch(model, reduction=4, learns=True), priced).train()


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)


def samples() -> list[tuple[Tensor, Tensor]]:
    """Two batches, which make an epoch."""
    draw = generator(5)
    return [
        (torch.randn(BATCH, 3, 64, 64, generator=draw), torch.randint(5, (BATCH,), generator=draw))
        for _ in range(STEPS // 2)
    ]


def plain_loop(priced: bool = True) -> tuple[list[float], dict[str, Tensor]]:
    """Loss of each step, and the weights after the last."""
    module, losses = learner(priced), []
    optimizer = optimizer_of(module)
    for batch in [*samples(), *samples()]:
        loss = module(*batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, module.state_dict()


def with_accelerate(
    folder: Path, accelerator: Any, priced: bool = True
) -> tuple[list[float], dict[str, Tensor]]:
    """As `plain_loop`, with a halt: the second epoch begins from a checkpoint in the folder."""
    losses: list[float] = []
    module: Any = None
    for epoch in range(2):
        module = learner(priced)
        module, optimizer = accelerator.prepare(module, optimizer_of(module))
        if epoch:
            accelerator.load_state(folder / "state")
        share = BATCH // accelerator.num_processes
        own = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)
        for images, labels in samples():
            loss = module(images[own], labels[own])
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            losses.append(float(accelerator.reduce(loss.detach(), "mean")))
        accelerator.wait_for_everyone()
        accelerator.save_state(folder / "state")
        weights = accelerator.unwrap_model(module).state_dict()
        accelerator.free_memory()
    return losses, weights


def main(folder: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    found = with_accelerate(folder, accelerator, priced=False)
    if accelerator.is_main_process:
        torch.save(found, folder / "found.pt")
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
