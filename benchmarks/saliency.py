"""The saliency map of a pretrained ViT-S/14 with a dense head, as a signal on which merged models are held
against the unmerged one."""

import argparse
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from stages import SCRIPTS
from torch import Tensor, nn
from torch.nn import functional as F

from launch.measure.evaluator import progress
from launch.measure.planning import Aims
from launch.measure.points import DIVERGENCE, LeftOut, Sweep, Target
from launch.published.agreement import agreement
from launch.published.batches import held_out_batches
from launch.published.merged import merged_model, merged_models
from launch.published.pictures import find_pictures
from launch.saved.policy_names import TRAINED, kind_of
from pipeline.backbone.adapters.folder import CONFIG
from pipeline.backbone.adapters.public import load_adapter
from pipeline.backbone.patching.merging_model import MergingModel
from pipeline.backbone.published import Published, open_published
from pipeline.merging.policies import POLICIES
from pipeline.objectives.signal import PATCHES, Signal
from pipeline.token_state import BackboneOutput

NAME, PIXELS, GRID = "timm:vit_small_patch14_dinov2", 224, (16, 16)
STEPS, BATCH, LR = 120, 16, 2e-3


class SaliencyMap(Signal):
    """Logits [B, 1, H, W] of the map at the size of the images, by a decoder that reads the unmerged grid of
    patches behind the last norm."""

    def __init__(self, decoder: nn.Module):
        super().__init__(PATCHES)
        self.decoder = decoder

    @property
    def metric_units(self) -> dict[str, str]:
        return {"agreement": "%", DIVERGENCE: ""}

    def read(self, model: MergingModel, output: BackboneOutput) -> Tensor:
        patches = super().read(model, output).mT.unflatten(2, GRID)
        return F.interpolate(self.decoder(patches), size=(PIXELS, PIXELS), mode="bilinear")

    def compare(self, merged: Tensor, whole: Tensor) -> dict[str, Tensor]:
        """agreement: share of the pixels on the same side of one half. divergence: mean over the pixels of
        that of the merged model's saliency, a probability, from the unmerged one's, in nats."""
        same = (merged > 0) == (whole > 0)
        return {
            "agreement": same.double().flatten(1).mean(dim=1),
            DIVERGENCE: divergence(merged, whole),
        }


def divergence(merged: Tensor, whole: Tensor) -> Tensor:
    """[B] mean over the pixels. merged, whole: logits [B, 1, H, W]."""
    p = whole.double().sigmoid()
    terms = p * (F.logsigmoid(whole.double()) - F.logsigmoid(merged.double()))
    terms += (1 - p) * (F.logsigmoid(-whole.double()) - F.logsigmoid(-merged.double()))
    return terms.flatten(1).mean(dim=1)


def opened(weights: Path) -> Published:
    return open_published(NAME, weights=str(weights), img_size=PIXELS)


def measured(
    args: argparse.Namespace,
    policies: Sequence[str],
    shares: Sequence[Target],
    *,
    within: float = 1.0,
    **how: Any,
) -> Sweep:
    """The policies at shares of the patches, on the pictures of --val. A trained policy has one adapter per
    seed, taught where it is not there. how: options of `agreement`."""
    published, pictures = opened(args.weights), find_pictures(args.val)
    count = len(pictures) if args.steps is None else 2
    left_out: list[LeftOut] = []
    models = _models(args, published, policies, left_out)
    batches = held_out_batches(
        pictures,
        range(count),
        published.size,
        published.pixels,
        batch_size=BATCH,
        workers=len(os.sched_getaffinity(0)) - 1,
    )
    found = agreement(
        models,
        SaliencyMap(read_decoder(args.weights)),
        progress(batches, "pictures"),
        Aims(shares, merged=True, within=within),
        name=NAME,
        split="CamVid's validation pictures",
        device=torch.device("cpu"),
        precision="fp32",
        seeds=args.seeds,
        left_out=left_out,
        **how,
    )
    assert found is not None, "it is one process"
    return found


def _models(
    args: argparse.Namespace, published: Published, policies: Sequence[str], left_out: list[LeftOut]
) -> Mapping[str, Sequence[MergingModel]]:
    trained = [policy for policy in policies if kind_of(policy) == TRAINED]
    others = [policy for policy in policies if policy not in trained]
    models = merged_models(published.model, others, seeds=args.seeds, left_out=left_out)
    for policy in trained:
        if not POLICIES.usual(policy).embeds:
            reason = f"policy '{policy}' is trained with its backbone, on labels, which these weights lack"
            left_out.append(LeftOut(policy, None, reason))
            continue
        adapters = [load_adapter(taught(args, policy, seed)) for seed in args.seeds]
        models[policy] = [
            merged_model(published.model, policy, 0, seed=0, adapter=adapter) for adapter in adapters
        ]
    return models


def taught(args: argparse.Namespace, policy: str, seed: int) -> str:
    """Folder of the seed's adapter, made where it is not there yet."""
    name = f"adapter_seed{seed}" if policy == "dtem" else f"adapter_{policy}_seed{seed}"
    out = args.work / name
    if not (out / CONFIG).is_file():
        options = {
            "--weights": args.weights,
            "--data": args.train,
            "--out": out,
            "--policy": policy,
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
