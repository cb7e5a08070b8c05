"""Images per second of merged inference on the CPU, against timm's unmerged model and, where given, the
authors' DTEM and ToMe.

python benchmarks/inference_cpu.py --release DTEM/deit.py --tome FOLDER_OF_TOME
"""

import argparse

import torch
from contestants import inference, ours, release, tome, unmerged
from measure import comparison, in_turns
from record import write_record


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--release", help="the authors' file with patch_deit")
    parser.add_argument("--tome", help="the folder that holds the authors' package tome")
    parser.add_argument("--record", default="benchmarks/records/inference_cpu.json")
    args = parser.parse_args()

    base = unmerged(args.model)
    models = {"timm": base, "ours_tome": ours(base, args.model, policy="tome", r=args.r)}
    if args.tome:
        models["tome"] = tome(base, args.tome, r=args.r)
    if args.release:
        models["release"] = release(base, args.release, r=args.r)
    models["ours_dtem"] = ours(models.get("release", base), args.model, policy="dtem", r=args.r)
    images = torch.randn(args.batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    results = [
        result for threads in args.threads for result in compare(models, images, threads, args.repeats)
    ]
    write_record(
        args.record,
        f"{args.model}, batch {args.batch}, r={args.r}, fp32: images/s of ours over the peer's",
        results,
    )


def compare(
    models: dict[str, torch.nn.Module], images: torch.Tensor, threads: int, repeats: int
) -> list[dict]:
    torch.set_num_threads(threads)
    seconds = in_turns({name: inference(model, images) for name, model in models.items()}, repeats)
    speed = {name: [len(images) / s for s in times] for name, times in seconds.items()}
    pairs = [("ours_dtem", "timm"), ("ours_dtem", "release"), ("ours_tome", "timm"), ("ours_tome", "tome")]
    return [
        comparison(f"{mine} vs {peer}, {threads} threads", speed[mine], speed[peer])
        for mine, peer in pairs
        if peer in speed
    ]


if __name__ == "__main__":
    main()
