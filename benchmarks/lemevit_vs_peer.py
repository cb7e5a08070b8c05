"""Our LeMeViT beside its authors' code: the largest difference of the logits, on the same random weights and
images, in float64. The weights go through `load_weights`, so this also tries the names of their checkpoints.

    python benchmarks/lemevit_vs_peer.py --peer lemevit=FOLDER/models/lemevit.py
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from contestants import CLASSES, logits_of, ours
from options import random_images
from peer_paths import add_peers
from peers import say_failed
from record import write_record
from torch import nn

SAME = 1e-4
"""Largest difference of logits that are the same."""
CASES = {
    "LeMeViT-Tiny, 224x224": ("lemevit_tiny", 224),
    "LeMeViT-Tiny, 160x160": ("lemevit_tiny", 160),
    "LeMeViT-Small, 224x224": ("lemevit_small", 224),
    "LeMeViT-Base, 224x224": ("lemevit_base", 224),
}
"""Name -> size, and pixels of a side. The scale of dual cross-attention follows the pixels."""
Builders = Callable[[str], nn.Module]
"""Maps the name of a size to a model with CLASSES classes."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=4, help="random images (default 4)")
    parser.add_argument(
        "--sizes", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help="default: all"
    )
    parser.add_argument("--record", default="benchmarks/records/lemevit_vs_peer.json")
    add_peers(parser)
    args = parser.parse_args()
    claim = f"LeMeViT, random weights and images, float64: logits are those of the authors' code up to {SAME}"
    write_record(args.record, claim, compared(args))


def compared(args: argparse.Namespace, build: Builders | None = None) -> Iterator[dict[str, Any]]:
    """build: of the peer's models; None: the authors'."""
    if build is None and "lemevit" not in args.peer:
        return
    for case in args.sizes:
        name, pixels = CASES[case]
        try:
            theirs = random_weights(build or authors(args.peer["lemevit"]), name)
            images = random_images(args.images, torch.device("cpu"), pixels).double()
            expected = logits(theirs, images)
        except Exception as err:  # whatever a stranger's code raises
            say_failed(case, err)
            continue
        mine = ours(theirs, name, policy="none", r=0, img_size=pixels).double()
        yield result_of(case, logits(mine, images), expected)


def result_of(case: str, mine: torch.Tensor, theirs: torch.Tensor) -> dict[str, Any]:
    """Raises RuntimeError where the logits are not the same."""
    apart = (mine - theirs).abs().max().item()
    if apart > SAME:
        raise RuntimeError(f"{case}: logits differ by {apart:.2e}")
    spread = theirs.std(dim=0).mean().item()
    return {"name": case, "scores": {"largest difference": apart, "standard deviation over images": spread}}


def authors(path: str) -> Builders:
    """The authors' file. It names fairscale for a wrapper that its own sizes do not use."""
    for name in ("fairscale", "fairscale.nn", "fairscale.nn.checkpoint"):
        sys.modules.setdefault(name, ModuleType(name))
    vars(sys.modules["fairscale.nn.checkpoint"]).setdefault("checkpoint_wrapper", lambda module: module)
    spec = importlib.util.spec_from_file_location("lemevit_of_the_authors", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # timm's registry looks there
    spec.loader.exec_module(module)
    return lambda name: getattr(module, name)(num_classes=CLASSES)


def random_weights(build: Builders, name: str) -> nn.Module:
    """A model in float64, with weights so large that tokens differ, and statistics of norms that are none of
    a start."""
    torch.manual_seed(0)
    model = build(name).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(0.5 * torch.rand_like(buffer))
    return model.double()  # of float32 numbers, which is how they come to ours


@torch.inference_mode()
def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return logits_of(model.eval(), images).double()


if __name__ == "__main__":
    main()
