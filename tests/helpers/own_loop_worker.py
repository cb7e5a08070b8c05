"""Run in each of two ranks: the loops of docs/own_loop.md for several devices, whose text it is given, in
float64, with a loss in which nothing is drawn. Rank 0 writes the states for the test to read."""

import os
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from tiny import generator
from torch import distributed
from torch.utils.data import DataLoader


def without_draws(text: str, step: str) -> str:
    return text.replace("merge_cost(self.model", "distill(self.model").replace(f", {step})\n", ")\n")


def run(text: str, rank: int) -> dict[str, Any]:
    """What the text defines, with this rank's half of each batch of the test."""
    draw = generator(3)
    samples = [(torch.randn(3, 64, 64, generator=draw), number % 10) for number in range(8)]
    torch.manual_seed(0)
    scope: dict[str, Any] = {"loader": DataLoader(samples[rank::2], batch_size=1)}
    exec(text, scope)
    return scope


def main(folder: Path, with_ddp: str, with_lightning: str) -> None:
    rank, create = int(os.environ["RANK"]), timm.create_model
    timm.create_model = lambda name, **rest: create(name, depth=2, **rest)
    torch.set_default_dtype(torch.float64)
    distributed.init_process_group("gloo")
    losses = run(without_draws(with_ddp, "step"), rank)["losses"]
    few = "accelerator='cpu', devices=2, strategy='ddp_find_unused_parameters_true', precision='64-true', "
    few += "use_distributed_sampler=False, enable_checkpointing=False, enable_progress_bar=False, "
    few += "enable_model_summary=False, "
    text = without_draws(with_lightning, "self.global_step").replace("Trainer(", f"Trainer({few}")
    trainer = run(text, rank)["trainer"]
    if rank == 0:
        save_file(losses.module.model.state_dict(), folder / "ddp.safetensors")
        save_file(trainer.lightning_module.model.state_dict(), folder / "lightning.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
