"""`dtem convert`: somebody's checkpoint as a .safetensors file of its weights alone."""

import argparse

from launch.commands.arguments import HelpFormatter

EXAMPLES = """examples:
  dtem convert model_best.pth.tar                        # of timm's train.py: the averaged weights, if any
  dtem convert iter_80000.pth --prefer model             # of mmengine: the weights that were trained
  dtem convert last.ckpt --prefix student. --out student.safetensors
  dtem convert vit_b_16.pth --model vit_base_patch16_224 # of torchvision, under timm's keys

`backbone.weights` and --weights read the same files as they are. No code of a file runs (SECURITY.md).
"""


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "convert",
        help="keep the weights of a checkpoint of timm, mmengine, Lightning, DINO, ... alone",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="file or folder that backbone.weights takes, or the folder of a run"
    )
    parser.add_argument(
        "--out", metavar="FILE", help="a .safetensors file (default: the source's name in the current folder)"
    )
    parser.add_argument(
        "--prefer",
        choices=("ema", "model"),
        default="ema",
        help="ema: averaged weights, where there are any (default); model: those that were trained",
    )
    parser.add_argument(
        "--prefix", metavar="TEXT", help="take the tensors whose names begin so, and take it off: student."
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="timm's name of the model: write its keys, with the head, and refuse what does not fit",
    )


def run(args: argparse.Namespace) -> int:
    """0 when the file is written. Raises PipelineError."""
    from pathlib import Path

    import tasks  # noqa: F401 - fills the registries, also of keys
    from launch.exported.converted import convert

    out = None if args.out is None else Path(args.out)
    for line in convert(args.source, out, prefer=args.prefer, prefix=args.prefix, model=args.model):
        print(line)
    return 0
