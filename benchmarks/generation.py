"""What a KV cache saves in beam search: the same search, and the same captions, with the whole text tower and
decoder run over all words at every step, as open_clip does, and with the keys of earlier words and of the
images kept.

    python benchmarks/generation.py
    python benchmarks/generation.py --device cuda --precision bf16 --batches 8,64     # needs open_clip
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from floor import Floor, floor_of, shares
from measure import MIB, comparison, in_turns, peak_added
from options import PRECISIONS, place, random_images, speed_arguments
from record import write_record
from torch import Tensor

from pipeline import build_backbone
from pipeline.backbone.vit import MergingViT
from tasks.captioning import CaptioningTask
from tasks.captions.generation import Generation, Step, generate
from tasks.captions.towers import ImageTokens


def main() -> None:
    parser = speed_arguments(__doc__, "generation", batches=(1, 8), repeats=3)
    parser.add_argument("--model", default="coca_ViT-B-32", help="open_clip's name of a CoCa")
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--reduction", type=int, default=8)
    parser.add_argument("--routes", nargs="+", default=["pooler", "direct"])
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--length", type=int, default=20, help="of every caption")
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    floor = floor_of(args.device, PRECISIONS[args.precision])
    backbone = build_backbone(args.backbone, policy="tome", reduction=args.reduction).to(args.device).eval()
    claim = (
        f"{args.model} on {args.backbone} at r = {args.reduction}, {args.beams} beams, length {args.length}, "
        f"{place(args)}: captions/s of beam search behind the encoder, with a KV cache over without"
    )
    results = (
        compared(backbone, route, batch, args, floor) for route, batch in product(args.routes, args.batches)
    )
    write_record(args.record, claim, results)


def compared(
    backbone: MergingViT, route: str, batch: int, args: argparse.Namespace, floor: Floor
) -> dict[str, Any]:
    """Raises SystemExit as `compare`."""
    tokenizer = {"type": "clip", "name": args.model}
    task = CaptioningTask(
        backbone, model=args.model, tokenizer=tokenizer, route=route, contrastive_weight=0.0
    )
    task.to(args.device).eval()
    with torch.inference_mode():
        image = task.image_tokens(backbone(random_images(batch, args.device)))
    return compare(task, image, args, floor)


def compare(
    task: CaptioningTask, image: ImageTokens, args: argparse.Namespace, floor: Floor
) -> dict[str, Any]:
    """Raises SystemExit where the two searches differ in fp32."""
    length, batch = args.length, len(image.tokens)
    config = Generation(strategy="beam", num_beams=args.beams, max_length=length, min_length=length)
    found: dict[str, Tensor] = {}
    steps = {"kept": task.next_words(image), "whole": whole_model(task, image)}
    runs = {name: search(task, step, config, batch, args, name, found) for name, step in steps.items()}
    seconds = in_turns(runs, args.repeats, budget=args.budget)
    if args.precision == "fp32" and not torch.equal(found["kept"], found["whole"]):
        raise SystemExit("the two searches find different captions")
    ours, peer = ([batch / s for s in seconds[name]] for name in ("kept", "whole"))
    name = f"captions/s, route {task.route}, with a KV cache vs without, batch {batch}, {place(args)}"
    # every step reads the weights
    read = sum(weight.numel() * weight.element_size() for weight in task.parameters())
    result = shares(comparison(name, ours, peer), floor, seconds["kept"], nbytes=read * length)
    peaks = {name: round(peak_added(run, args.device) / MIB, 1) for name, run in runs.items()}
    return result | {"peak_mib": {"ours": peaks["kept"], "peer": peaks["whole"]}}


def search(
    task: CaptioningTask,
    step: Step,
    config: Generation,
    batch: int,
    args: argparse.Namespace,
    name: str,
    found: dict[str, Tensor],
) -> Callable[[], None]:
    """One call finds a caption of each image, and leaves them in `found`."""
    start = torch.full((batch,), task.special.bos, device=args.device)
    dtype = PRECISIONS[args.precision]

    @torch.inference_mode()
    def run() -> None:
        with torch.autocast(args.device.type, dtype, enabled=dtype != torch.float32):
            found[name] = generate(step, start, task.special, config)

    return run


@dataclass(frozen=True)
class Words:
    """All that a search without a cache keeps."""

    tokens: Tensor

    def take(self, rows: Tensor) -> "Words":
        return Words(self.tokens[rows])


def whole_model(task: CaptioningTask, image: ImageTokens) -> Step:
    def step(last: Tensor, kept: Words | None) -> tuple[Tensor, Words]:
        tokens = last[:, None] if kept is None else torch.cat([kept.tokens, last[:, None]], dim=1)
        logits = task.decoder(task.text(tokens)[0], image)[0]
        return logits[:, -1], Words(tokens)

    return step


if __name__ == "__main__":
    main()
