"""What a KV cache saves in beam search on the CPU: the same search, and the same captions, with the whole
text tower and decoder run over all words at every step, as open_clip does, and with the keys of earlier words
and of the images kept.

python benchmarks/beam_search_cpu.py
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from measure import comparison, in_turns
from record import write_record
from torch import Tensor

from pipeline import build_backbone
from tasks.captioning import CaptioningTask
from tasks.captions.generation import Generation, Step, generate
from tasks.captions.towers import ImageTokens

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="coca_ViT-B-32", help="open_clip's name of a CoCa")
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--reduction", type=int, default=8)
    parser.add_argument("--routes", nargs="+", default=["pooler", "direct"])
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--length", type=int, default=20, help="of every caption")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", default="benchmarks/records/beam_search_cpu.json")
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    config = Generation(strategy="beam", num_beams=args.beams, max_length=args.length, min_length=args.length)
    backbone = build_backbone(args.backbone, policy="tome", reduction=args.reduction).eval()
    images = torch.randn(
        BATCH, 3, *(side * patch for side, patch in zip(backbone.grid, backbone.patch_size, strict=True))
    )
    results = []
    for route in args.routes:
        tokenizer = {"type": "clip", "name": args.model}
        task = CaptioningTask(
            backbone, model=args.model, tokenizer=tokenizer, route=route, contrastive_weight=0.0
        ).eval()
        with torch.inference_mode():
            image = task.image_tokens(backbone(images))
        results.append(compare(task, image, config, args.repeats))
    what = (
        f"{args.model} on {args.backbone} at r = {args.reduction}, batch {BATCH}, {args.beams} "
        f"beams, length {args.length}"
    )
    claim = (
        f"{what}, fp32, {args.threads} threads: captions/s of beam search behind the encoder, with "
        "a KV cache over without"
    )
    write_record(args.record, claim, results)


def compare(task: CaptioningTask, image: ImageTokens, config: Generation, repeats: int) -> dict:
    found: dict[str, Tensor] = {}
    steps = {"kept": task.next_words(image), "whole": whole_model(task, image)}
    seconds = in_turns(
        {name: search(task, step, config, name, found) for name, step in steps.items()}, repeats
    )
    if not torch.equal(found["kept"], found["whole"]):
        raise SystemExit("the two searches find different captions")
    ours, peer = ([len(image.tokens) / s for s in seconds[name]] for name in ("kept", "whole"))
    return comparison(f"captions/s, route {task.route}, with a KV cache vs without", ours, peer)


def search(
    task: CaptioningTask, step: Step, config: Generation, name: str, found: dict[str, Tensor]
) -> Callable[[], None]:
    start = torch.full((BATCH,), task.special.bos)

    @torch.inference_mode()
    def run() -> None:
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
