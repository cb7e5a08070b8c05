"""`dtem teach`: a published model learns which of its tokens may merge, from pictures without labels. The
result is a merge adapter.

MODEL is timm:NAME (or NAME), a folder that `dtem export` or timm's save_for_hf wrote, hf-hub:USER/NAME, or
hf: and a name or folder of Hugging Face transformers. The frozen model gives the signal: the logits of its
classes, else its pooled features, else the features of its patches. Nothing of the model itself changes.
"""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from launch.commands.arguments import HelpFormatter, add_setting_arguments
from launch.commands.published import add_published_arguments, add_signal_argument
from launch.commands.values import fractions

EXAMPLE = r"""examples:
  dtem teach timm:deit_small_patch16_224.fb_in1k --data /data/imagenet/val --out adapters/deit_small
  dtem teach timm:vit_base_patch14_dinov2 --data photos --signal patches --img-size 224
  dtem teach exported --data data/imagenet --steps 500 --set merging.options.init=keys

/data/imagenet/val and photos stand for folders of your pictures, data/imagenet for shards, and exported for
what `dtem export` wrote.
"""
MACS = "0.8,0.7,0.6,0.5"


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "teach",
        help="teach a published model which tokens to merge, without labels",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="the model, see above")
    parser.add_argument(
        "--data",
        required=True,
        metavar="SHARDS_OR_FOLDER",
        help="a folder of pictures, its subfolders included; or shards: a folder of them, a pattern or a "
        "URL. Every 20th picture is held out (at least 64) for the curve",
    )
    parser.add_argument("--out", metavar="DIR", help="folder of the adapter (default: adapters/NAME_POLICY)")
    add_published_arguments(parser)
    add_signal_argument(parser)
    parser.add_argument("--policy", default="dtem", metavar="NAME", help="default dtem")
    add_setting_arguments(parser, "of the policy's options, for instance merging.options.init=keys")
    parser.add_argument(
        "--reduction",
        type=int,
        default=13,
        metavar="R",
        help="tokens removed per block that the adapter recommends; each step learns with R/2 to 3R/2 "
        "(default 13)",
    )
    parser.add_argument(
        "--pairs",
        choices=("first", "merged"),
        default="first",
        help="pairs that are priced: the first of each block (default), or all that merge, for large "
        "reductions (docs/merge_cost.md)",
    )
    parser.add_argument("--steps", type=int, default=2000, metavar="N", help="default 2000")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="default 64")
    parser.add_argument("--lr", type=float, default=1e-3, metavar="X", help="peak; default 1e-3")
    parser.add_argument(
        "--macs",
        type=fractions,
        default=fractions(MACS),
        metavar="F,F",
        help=f"shares of the unmerged MACs at which the result is measured (default {MACS})",
    )
    parser.add_argument("--no-curve", action="store_true", help="do not measure the result")
    parser.add_argument("--license", metavar="NAME", help="of the adapter, for instance apache-2.0")
    parser.add_argument("--device", metavar="NAME", help="cuda or cpu (default: a GPU where there is one)")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), help="default: bf16 on a GPU, fp32 on the CPU"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that decode (default: by the CPUs, 8 at most)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")


def policy_options(changes: Sequence[str]) -> dict[str, Any]:
    """Options of the policy, from changes `merging.options.NAME=VALUE`. Raises ConfigError for others."""
    from pipeline.config.overrides import override
    from pipeline.errors import ConfigError

    if wrong := [change for change in changes if not change.startswith("merging.options.")]:
        raise ConfigError(
            f"--set {wrong[0]}: teaching takes options of the policy alone, merging.options.NAME=VALUE; what "
            "else can be chosen has an argument of its own"
        )
    return override({}, changes).get("merging", {}).get("options", {})


def run(args: argparse.Namespace) -> int:
    """0 when the adapter is written with its curve, or was stopped as asked. Raises PipelineError."""
    import logging
    from pathlib import Path

    from launch.published.pictures import find_pictures
    from launch.published.sources import plain_name
    from launch.saved.device import device_and_precision
    from launch.teach.lesson import Order
    from launch.teach.loop import Teaching
    from launch.teach.run import teach_published
    from pipeline.backbone.published import open_published, spelled
    from pipeline.config.schema import OptimConfig

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    name = spelled(args.model)
    device, precision = device_and_precision(args.device, args.precision)
    cpus = len(os.sched_getaffinity(0))
    order = Order(
        data=args.data,
        out=Path(args.out or f"adapters/{plain_name(name)}_{args.policy}"),
        how=Teaching(
            steps=args.steps,
            optim=OptimConfig(lr=args.lr, min_lr=min(1e-6, args.lr), warmup_steps=min(50, args.steps // 10)),
            reduction=args.reduction,
            pairs=args.pairs,
            seed=args.seed,
        ),
        policy=args.policy,
        signal=args.signal,
        macs=[] if args.no_curve else args.macs,
        batch_size=args.batch_size,
        workers=min(8, cpus - 1) if args.workers is None else args.workers,
        device=device,
        precision=precision,
        license=args.license,
        options=policy_options(args.cfg_options),
    )
    pictures = find_pictures(args.data)
    published = open_published(
        name,
        weights=args.weights,
        pretrained=not args.no_pretrained,
        img_size=args.img_size,
        mean=args.mean,
        std=args.std,
    )
    teach_published(order, pictures, published)
    return 0
