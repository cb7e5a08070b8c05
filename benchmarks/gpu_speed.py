"""Images per second of inference or of a training step of all parameters, ours over timm's unmerged model, on
a GPU.

On a CPU, with a small --batch, it runs too; the tests do that.

    python benchmarks/gpu_speed.py --what inference --precision bf16 \\
        --record benchmarks/records/gpu_inference_bf16.json
"""

import argparse

import torch
from contestants import inference, ours, training_step, unmerged
from measure import comparison, in_turns
from record import write_record

STEPS = {"inference": inference, "training": training_step}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--what", choices=STEPS, required=True)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--r", type=int, nargs="+", default=[0, 8, 13, 16])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--record", required=True)
    args = parser.parse_args()

    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    images = torch.randn(args.batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(args.device)
    base = unmerged(args.model)
    models = {"timm": base} | {f"dtem r={r}": ours(base, args.model, policy="dtem", r=r) for r in args.r}
    seconds = in_turns(
        {name: STEPS[args.what](model, images, dtype) for name, model in models.items()},
        args.repeats,
        warmup=3,
    )
    speed = {name: [args.batch / s for s in times] for name, times in seconds.items()}
    results = [comparison(name, speed[name], speed["timm"]) for name in speed if name != "timm"]
    claim = (
        f"{args.model}, batch {args.batch}, {args.precision}, {args.what}: images/s over timm's "
        "unmerged model"
    )
    write_record(args.record, claim, results)


if __name__ == "__main__":
    main()
