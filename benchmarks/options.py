"""The options that the scripts about speed share."""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from types import ModuleType

import torch

if find_spec("psutil") is None:
    # A bare GPU machine. It ends processes that a run has left behind; the runs of these scripts start none.
    sys.modules["psutil"] = ModuleType("psutil")
    vars(sys.modules["psutil"])["Process"] = object

ALL_BATCHES = (1, 4, 16, 64, 128, 256)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def speed_arguments(
    description: str | None,
    name: str,
    *,
    batches: Sequence[int],
    repeats: int = 15,
    budget: float = 60.0,
    precisions: bool = True,
) -> argparse.ArgumentParser:
    """A parser of where and how often something is timed. name: of the record. batches: the default sizes.
    budget: default seconds, see `measure.in_turns`. precisions: whether there is a choice of them."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu, cuda")
    if precisions:
        parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="bf16 is autocast")
    else:
        parser.set_defaults(precision="fp32")
    parser.add_argument(
        "--batches", type=sizes, default=list(batches), help=f"such as 1,16,256, or all: {ALL_BATCHES}"
    )
    parser.add_argument("--repeats", type=int, default=repeats, help=f"turns at most (default {repeats})")
    parser.add_argument(
        "--budget", type=float, default=budget, help=f"seconds of a comparison (default {budget:.0f})"
    )
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default 2)")
    parser.add_argument("--record", default=f"benchmarks/records/{name}.json")
    return parser


def numbers(text: str) -> list[int]:
    """`1,4,16` as numbers."""
    return [int(part) for part in text.split(",")]


def sizes(text: str) -> list[int]:
    return list(ALL_BATCHES) if text == "all" else numbers(text)


def words(text: str) -> list[str]:
    return text.split(",")


def place(args: argparse.Namespace) -> str:
    """Where it runs, for the name of a result."""
    where = "cuda" if args.device.type == "cuda" else f"{args.threads} threads"
    return f"{args.precision}, {where}"


def random_images(batch: int, device: torch.device, size: int = 224) -> torch.Tensor:
    """[batch, 3, size, size], the same in every script."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
