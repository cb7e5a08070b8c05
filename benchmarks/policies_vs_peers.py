"""Policies beside others' code of the same systems: the largest difference of the logits, on the same random
weights and images, in float64. Where the two differ on purpose, the result says which departs from the paper.

    python benchmarks/policies_vs_peers.py --peer opentome=FOLDER --peer gtp=FOLDER --peer vid_tldr=FOLDER \\
        --peer mctf=FOLDER --peer stvit=FOLDER --peer evit=FOLDER --peer as_vit=FOLDER
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import timm
import torch
from contestants import CLASSES, logits_of, ours
from options import random_images
from peer_paths import add_peers
from peers import mctf, opentome_pitome, opentome_tofu, say_failed
from peers_semantic import stvit, with_semantic_weights
from peers_that_drop import as_vit, evit, gtp, vid_tldr
from record import write_record
from torch import nn

NAME = "deit_tiny_patch16_224"
DEPTH, R = 12, 8
SAME = 1e-4
"""Largest difference of logits that are the same."""
FIRST, SECOND = [R] * 6 + [0] * 6, [0] * 6 + [R] * 6
"""Tokens that each block removes, in one half of the blocks."""
THREE = [0, 0, 0, 58, 0, 0, 41, 0, 0, 29, 0, 0]
"""Those of EViT, which keeps 70 % of the patches in three blocks."""


AVERAGED = {"class_token": False, "global_pool": "avg"}


@dataclass(frozen=True)
class Case:
    """build: the peer's model, of (weights, folder, r=...). options: of our policy. departs: who departs from
    the paper, where the two differ; None: they are the same. attends: whether ours attends by size, as the
    peer. model: timm's options of the model. fills: sets what our policy learns, as the peer has it."""

    peer: str
    build: Callable[..., nn.Module]
    policy: str
    schedule: list[int]
    options: dict[str, Any] = field(default_factory=dict)
    departs: str | None = None
    attends: str = "never"
    model: dict[str, Any] = field(default_factory=dict)
    fills: Callable[[nn.Module], None] | None = None


CASES = {
    "MCTF, first half of the blocks": Case("mctf", mctf, "mctf", FIRST, attends="always"),
    "MCTF, all blocks but the first": Case("mctf", mctf, "mctf", [0] + [16] * 11, attends="always"),
    "PiToMe, all blocks": Case("opentome", opentome_pitome, "pitome", [R] * DEPTH, {"margin": 0.75}),
    "PiToMe of the paper, first half of the blocks": Case(
        "opentome",
        opentome_pitome,
        "pitome",
        FIRST,
        {"margin": 0.75, "until": 0.0},
        "OpenToMe departs: its first half of the blocks parts all tokens by energy and merges the most "
        "similar pairs, where the paper merges the 2r tokens of the highest energy",
    ),
    "ToFu, first half of the blocks": Case("opentome", opentome_tofu, "tofu", FIRST),
    "ToFu, last block but one": Case(
        "opentome",
        opentome_tofu,
        "tofu",
        [0] * 10 + [R, 0],
        departs="OpenToMe departs: it divides the mean by the norm of the destination, where MLERP divides "
        "it by the mean's own, so that the result has the largest norm of the pair",
    ),
    "GTP-ViT, first half of the blocks": Case("gtp", gtp, "gtp", FIRST),
    "GTP-ViT, all blocks": Case("gtp", gtp, "gtp", [R] * DEPTH),
    "AS-ViT, three blocks": Case("as_vit", as_vit, "as_vit", THREE),
    "EViT, three blocks": Case("evit", evit, "evit", THREE),
    "EViT, all blocks": Case("evit", evit, "evit", [R] * DEPTH),
    "EViT, three blocks, fused": Case(
        "evit",
        partial(evit, fuse=True),
        "evit",
        THREE,
        {"fuse": True},
        "ours departs: the paper adds the patches up that leave, each times its attention, so that their "
        "token is small; ours is their mean with these weights",
    ),
    "vid-TLDR, first two blocks": Case(
        "vid_tldr",
        vid_tldr,
        "vid_tldr",
        [40, 30] + [0] * 10,
        attends="always",
        model=AVERAGED,
    ),
    "STViT-R, 36 semantic tokens from block 3 on": Case(
        "stvit",
        stvit,
        "stvit",
        [0, 0, 0, 160] + [0] * 8,
        {"block": 3, "recovery": True},
        model=AVERAGED,
        fills=with_semantic_weights,
    ),
}
"""OpenToMe and GTP-ViT count no sizes in attention. Margins of OpenToMe fall from 0.75, those of the paper
from 0.9."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=4, help="random images (default 4)")
    parser.add_argument("--record", default="benchmarks/records/policies_vs_peers.json")
    add_peers(parser)
    args = parser.parse_args()
    claim = (
        f"{NAME}, random weights and images, float64: logits of a policy are those of the peer up to {SAME}, "
        "or it is said which of the two departs from the paper"
    )
    write_record(args.record, claim, compared(args))


def compared(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    images = random_images(args.images, torch.device("cpu")).double()
    for name, case in CASES.items():
        if case.peer not in args.peer:
            continue
        weights = random_weights(case.model)
        try:
            theirs = logits(case.build(weights, args.peer[case.peer], r=case.schedule), images)
        except Exception as err:  # whatever a stranger's code raises
            say_failed(name, err)
            continue
        mine = logits(our_model(weights, case), images)
        unmerged = logits(our_model(weights, case, merges=False), images)
        yield result_of(name, case, mine, theirs, unmerged)


def result_of(
    name: str, case: Case, mine: torch.Tensor, theirs: torch.Tensor, unmerged: torch.Tensor
) -> dict[str, Any]:
    """Raises RuntimeError where logits that should be the same are not, or the other way round."""
    apart, by_merging = ((mine - other).abs().max().item() for other in (theirs, unmerged))
    if (apart <= SAME) != (case.departs is None):
        raise RuntimeError(f"{name}: logits differ by {apart:.2e}, which is not what is said of it")
    scores = {"largest difference": apart, "largest difference from the unmerged model": by_merging}
    return {"name": name, "scores": scores} | ({"departs": case.departs} if case.departs else {})


def random_weights(options: dict[str, Any] | None = None) -> nn.Module:
    """timm's model in float64, with weights so large that tokens differ. options: of timm."""
    torch.manual_seed(0)
    model = timm.create_model(NAME, num_classes=CLASSES, **options or {}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.double()  # of float32 numbers, which is how they come to ours


def our_model(weights: nn.Module, case: Case, *, merges: bool = True) -> nn.Module:
    r: Any = case.schedule if merges else 0
    options = {"proportional_attention": case.attends, "timm_options": case.model, **case.options}
    model = ours(weights, NAME, policy=case.policy, r=r, **options)
    if case.fills is not None:
        case.fills(model)
    return model.double()


@torch.inference_mode()
def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return logits_of(model.eval(), images)


if __name__ == "__main__":
    main()
