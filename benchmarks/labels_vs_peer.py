"""Labels that follow tokens beside the code of TL-Align's authors: the largest difference of the targets and
of the logits, on the same random weights, images and rectangles, in float32.

    python benchmarks/labels_vs_peer.py --peer tl_align=FOLDER
"""

import argparse
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from contestants import CLASSES, ours
from options import random_images
from peer_paths import add_peers
from peers import package, say_failed
from policies_vs_peers import NAME, SAME, random_weights
from record import write_record
from torch import Tensor, nn

from pipeline.backbone.partner import partner_of
from pipeline.config.schema import AugmentConfig
from pipeline.data.augment.mixing import BatchMixer
from pipeline.data.augment.patch_mixing import mixed_labels
from pipeline.data.targets import ClassificationTargets
from pipeline.interfaces import Batch

SMOOTHING, DRAWS, PATCH = 0.1, 4, 16
CLAIM = (
    f"{NAME}, random weights and images, float32: the targets that follow the tokens are those of the "
    f"authors' code up to {SAME}, and so are the logits, up to that share of the largest"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=4, help="random images, an even number (default 4)")
    parser.add_argument("--record", default="benchmarks/records/labels_vs_peer.json")
    add_peers(parser)
    args = parser.parse_args()
    write_record(args.record, CLAIM, compared(args))


def compared(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One result for each draw of a rectangle; none where the peer is not given or does not run here."""
    if "tl_align" not in args.peer:
        return
    weights = uneven_weights()
    for draw in range(DRAWS):
        batch = mixed_batch(args.images, draw)
        try:
            theirs = by_authors(weights, args.peer["tl_align"], batch)
        except Exception as err:  # whatever a stranger's code raises
            say_failed("tl_align", err)
            return
        yield result_of(draw, batch, by_ours(weights, batch), theirs)


def uneven_weights() -> nn.Module:
    """Random weights of the model in float32, whose attention is far from even."""
    weights = random_weights().float()
    with torch.no_grad():
        for name, parameter in weights.named_parameters():
            if name.endswith("attn.qkv.weight"):
                parameter.mul_(3)
    return weights


def mixed_batch(count: int, draw: int) -> Batch:
    """Random images, of which each has a rectangle of whole patches of another one."""
    mixer = BatchMixer(
        AugmentConfig(cutmix=1.0, mix_labels="tokens"), CLASSES, ClassificationTargets, (PATCH, PATCH)
    )
    labels = torch.arange(count) * 7 % CLASSES
    images = random_images(count, torch.device("cpu"))
    return mixer(Batch("imagenet", images, ClassificationTargets(labels)), 0, draw)


@torch.no_grad()
def by_ours(weights: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Targets and logits, [B, K] each."""
    model = ours(weights, NAME, policy="none", r=0).eval()
    encoded = model.encode_batch(batch)
    head: Any = model.tasks["imagenet"]
    mixture = batch.targets.mixture
    labels = mixed_labels(mixture.labels, partner_of(encoded.final)[:, 0], CLASSES)
    return labels * (1 - SMOOTHING) + SMOOTHING / CLASSES, head.logits(encoded)


@torch.no_grad()
def by_authors(weights: nn.Module, folder: str, batch: Batch) -> tuple[Tensor, Tensor]:
    """The same by the authors' model and labels of tokens."""
    authors, model, mixture = package(folder, "tla"), authors_model(weights, folder), batch.targets.mixture
    mask = mixture.partner[0].flatten()  # one rectangle for all images
    options = {"smoothing": SMOOTHING, "device": "cpu"}
    whole = authors.mixup_target(mixture.labels, CLASSES, 1 - mask.mean().item(), **options)
    patches = authors.token_label(mixture.labels, CLASSES, mask, **options)
    logits, targets = model(batch.images, torch.cat([whole[:, None], patches], dim=1))
    return targets, logits


def authors_model(weights: nn.Module, folder: str) -> nn.Module:
    """The authors' VisionTransformer. It is a file for timm's folder of models, so it is read as one; its
    models stay out of timm's registry."""
    name, registry = "timm.models.of_tl_align", "timm.models.registry"
    unlisted = ModuleType(registry)
    vars(unlisted)["register_model"] = lambda function: function
    spec = importlib.util.spec_from_file_location(name, Path(folder) / "timm/models/vision_transformer.py")
    assert spec is not None and spec.loader is not None
    module, listed = importlib.util.module_from_spec(spec), sys.modules.get(registry)
    sys.modules[registry] = unlisted
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[registry]
        if listed is not None:
            sys.modules[registry] = listed
    vit: Any = weights
    model = module.VisionTransformer(
        num_classes=vit.num_classes,
        patch_size=PATCH,
        embed_dim=vit.embed_dim,
        depth=len(vit.blocks),
        num_heads=vit.blocks[0].attn.num_heads,
    )
    model.load_state_dict(weights.state_dict())
    return model.eval()


def result_of(
    draw: int, batch: Batch, mine: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]
) -> dict[str, Any]:
    """Raises RuntimeError where they are not the same."""
    share = batch.targets.mixture.partner[0].mean().item()
    labels, logits = ((own - other).abs().max().item() for own, other in zip(mine, theirs, strict=True))
    logits /= theirs[1].abs().max().item()
    if max(labels, logits) > SAME:
        raise RuntimeError(
            f"draw {draw}: targets differ by {labels:.2e}, and logits by {logits:.2e} of the largest"
        )
    by_area = batch.targets.labels * (1 - SMOOTHING) + SMOOTHING / CLASSES
    scores = {
        "share of the partner": round(share, 4),
        "largest difference of targets": labels,
        "largest difference of logits, of the largest": logits,
        "largest difference from targets by area": (mine[0] - by_area).abs().max().item(),
    }
    return {"name": f"draw {draw}", "scores": scores}


if __name__ == "__main__":
    main()
