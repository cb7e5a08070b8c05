"""The saliency map of a real pretrained ViT-S/14 with a dense head, with 30, 50, 70 and 85 % of its patches
merged: DTEM, taught by `dtem teach` without labels, against ToMe, random merging and its own untrained
embedding.

The model is frozen. Its decoder reads the unmerged grid of patches, and its map on the unmerged model is the
reference. An adapter is taught once per seed from the training pictures. All policies are then compared on
the others. A stopped script continues.

    python benchmarks/vit_small_saliency_dtem_vs_tome.py --weights vit_small_saliency/model.safetensors \\
        --train 'data/camvid/train-{00000..00003}.tar' --val data/camvid/val-00000.tar
"""

import argparse
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from record import write_record
from safetensors.torch import load_file
from stages import POLICIES, SCRIPTS, arguments
from torch import Tensor, nn
from torch.nn import functional as F

from launch.measure.evaluator import progress
from launch.published.batches import held_out_batches
from launch.published.merged import merged_models
from launch.published.pictures import Pictures, find_pictures
from pipeline.backbone.adapters.folder import CONFIG
from pipeline.backbone.adapters.public import load_adapter
from pipeline.backbone.macs import counted_model
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.backbone.published import Published, open_published
from pipeline.merging.schedule import reduction_for_merged

NAME, PIXELS = "timm:vit_small_patch14_dinov2", 224
MERGED, WITHIN = (0.3, 0.5, 0.7, 0.85), {"all blocks": 1.0, "the first half of the blocks": 0.5}
STEPS, BATCH, LR = 120, 16, 2e-3
CLAIM = (
    "divergence (nats x 1e4) of a pretrained ViT-S/14's saliency map from that of the unmerged model: DTEM, "
    "taught without labels, at most half of ToMe's, and below its untrained embedding, with 30, 50, 70 and "
    "85 % of the patches merged in all blocks or in the first half of them"
)
LEARNED = ("dtem_untrained", "dtem")
Schedules = Mapping[str, Sequence[int]]


def main() -> None:
    parser = arguments(__doc__, "vit_small_saliency_dtem_vs_tome")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file of ViT and decoder")
    args = parser.parse_args()
    published = open_published(NAME, weights=str(args.weights), img_size=PIXELS)
    decoder = read_decoder(args.weights)
    schedules = {
        f"{share:.0%} of the patches merged in {words}": reduction_for_merged(
            12, share, (16, 16), within=within
        )
        for words, within in WITHIN.items()
        for share in MERGED
    }
    pictures = find_pictures(args.val)
    count = len(pictures) if args.steps is None else 2
    found: dict[str, dict[str, list[float]]] = {}
    for seed in args.seeds:
        adapter = load_adapter(taught(args, seed))
        policies = POLICIES if seed == args.seeds[0] else LEARNED  # the others have no seed of their own
        models = merged_models(published.model, policies, seed=seed, adapter=adapter)
        for point, means in divergences(published, decoder, models, schedules, pictures, count).items():
            for policy, mean in means.items():
                found.setdefault(point, {}).setdefault(policy, []).append(mean)
    write_record(
        args.record,
        CLAIM,
        [_row(published, *item, found[item[0]]) for item in schedules.items()],
        seeds=args.seeds,
    )


def _row(
    published: Published, name: str, schedule: Sequence[int], scores: dict[str, list[float]]
) -> dict[str, Any]:
    """A result of the record. macs_ratio: that of a model with embeddings, without decoder."""
    model = merged_models(published.model, ["dtem_untrained"], seed=0)["dtem_untrained"]
    counted = counted_model(model, torch.zeros(1, 3, *published.size))
    whole, merged = (counted.macs(counted.schedule(r)).total for r in (0, list(schedule)))
    return {
        "name": f"divergence, {name}",
        "reduction": list(schedule),
        "macs_ratio": round(merged / whole, 4),
        "scores": {policy: [round(value, 2) for value in values] for policy, values in scores.items()},
    }


def taught(args: argparse.Namespace, seed: int) -> str:
    """Folder of the seed's adapter, made where it is not there yet."""
    out = args.work / f"adapter_seed{seed}"
    if not (out / CONFIG).is_file():
        options = {
            "--weights": args.weights,
            "--data": args.train,
            "--out": out,
            "--signal": "patches",
            "--img-size": PIXELS,
            "--steps": args.steps or STEPS,
            "--batch-size": BATCH,
            "--lr": LR,
            "--seed": seed,
        }
        words = [str(word) for option in options.items() for word in option]
        subprocess.run([str(SCRIPTS / "dtem"), "teach", NAME, *words, "--no-curve"], check=True)
    return str(out)


def read_decoder(weights: Path) -> nn.Module:
    """Maps patch features [B, 384, h, w] to logits of saliency [B, 1, 8 h, 8 w]; see the README beside the
    weights."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((384, 256), (256, 128), (128, 64)):
        layers += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    decoder = nn.Sequential(*layers, nn.Conv2d(64, 1, 1))
    places = {f"{kind}{i}": 3 * (i - 1) + at for i in (1, 2, 3) for at, kind in enumerate(("upconv", "bn"))}
    tensors = {
        key.removeprefix("decoder."): value.float()
        for key, value in load_file(weights).items()
        if "decoder." in key
    }
    places["final_conv"] = 9
    state = {
        f"{places[key.partition('.')[0]]}.{key.partition('.')[2]}": value for key, value in tensors.items()
    }
    decoder.load_state_dict(state)
    return decoder.eval().requires_grad_(False)


@torch.no_grad()
def divergences(
    published: Published,
    decoder: nn.Module,
    models: Mapping[str, MergingModel],
    schedules: Schedules,
    pictures: Pictures,
    count: int,
) -> dict[str, dict[str, float]]:
    """Point -> policy -> mean divergence in nats x 1e4 over the first `count` pictures."""
    sums: dict[str, dict[str, Tensor]] = {}
    batches = held_out_batches(
        pictures,
        range(count),
        published.size,
        published.pixels,
        batch_size=BATCH,
        workers=len(os.sched_getaffinity(0)) - 1,
    )
    seen = 0
    for batch in progress(batches, "pictures"):
        images = batch.to(torch.device("cpu")).images
        whole = saliency(decoder, models["none"], images)
        seen += len(images)
        for point, schedule in schedules.items():
            own = sums.setdefault(point, {})
            for policy, model in models.items():
                if policy != "none":
                    model.reduction = list(schedule)
                    own[policy] = (
                        own.get(policy, 0) + divergence(saliency(decoder, model, images), whole).sum()
                    )
    return {
        point: {policy: float(total) / seen * 1e4 for policy, total in own.items()}
        for point, own in sums.items()
    }


def saliency(decoder: nn.Module, model: MergingModel, images: Tensor) -> Tensor:
    """Logits [B, 1, H, W] at the size of the images. The decoder gets the features that timm's models give
    dense heads."""
    timm_model: Any = model
    (patches,) = timm_model.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
    return F.interpolate(decoder(patches), size=images.shape[-2:], mode="bilinear")


def divergence(merged: Tensor, whole: Tensor) -> Tensor:
    """[B] mean over the pixels of the divergence of the merged model's saliency from the unmerged one's, each
    a probability. merged, whole: logits [B, 1, H, W]."""
    p = whole.double().sigmoid()
    terms = p * (F.logsigmoid(whole.double()) - F.logsigmoid(merged.double()))
    terms += (1 - p) * (F.logsigmoid(-whole.double()) - F.logsigmoid(-merged.double()))
    return terms.flatten(1).mean(dim=1)


if __name__ == "__main__":
    main()
