"""`dtem shards`: makes WebDataset shards with a manifest, looks at them, checks, repairs, splits and merges
them, puts noise into their labels, and counts the words of their captions."""

import argparse
import logging
import os
import pprint
import sys
from pathlib import Path

from launch.commands import shard_tools
from launch.commands.arguments import HelpFormatter
from launch.commands.values import count
from pipeline.data.layouts import CAPTIONS, IMAGE_FOLDER, LABELS, MASKS, SHARD_SIZES, TABLES, VIDEOS

WORKERS = min(8, os.cpu_count() or 1)


def add_parser(subparsers) -> None:
    parser = subparsers.add_parser(
        "shards",
        help="make shards with a manifest, look at them, verify, repair, split and merge them",
        description=__doc__,
        formatter_class=HelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    make = actions.add_parser("make", help="write shards, or the manifest of existing ones")
    kinds = make.add_subparsers(dest="kind", metavar="KIND", required=True)
    _add_imagefolder(kinds)
    for kind, tree in (MASKS | CAPTIONS | TABLES | VIDEOS).items():
        _add_layout(kinds, kind, tree)
    _add_digit_scenes(kinds)
    _add_moving_digits(kinds)
    _add_index(kinds)
    _add_verify(actions)
    _add_words(actions)
    shard_tools.add_parsers(actions, WORKERS)


def _add_imagefolder(kinds) -> None:
    parser = kinds.add_parser(
        "imagefolder",
        help="from SRC/{train,val,test}/CLASS/*.JPEG (ImageNet's layout) or SRC/CLASS/*.jpg",
        formatter_class=HelpFormatter,
        epilog="example: dtem shards make imagefolder /data/imagenet data/imagenet --workers 16",
    )
    source = "the tree; LOC_synset_mapping.txt in or beside it gives human names"
    _add_pictures(parser, IMAGE_FOLDER, source)


def _add_layout(kinds, kind: str, tree: str) -> None:
    source = f"/data/{kind}" + (".csv" if kind in ("captions", LABELS) else "")
    parser = kinds.add_parser(
        kind,
        help=tree,
        formatter_class=HelpFormatter,
        epilog=f"example: dtem shards make {kind} {source} data/{kind} --workers 16",
    )
    _add_pictures(parser, kind, "the table" if kind in ("captions", LABELS) else "the tree")


def _add_pictures(parser: argparse.ArgumentParser, kind: str, source: str) -> None:
    """Adds the arguments of every maker that reads pictures from disk."""
    parser.add_argument("src", metavar="SRC", help=source)
    parser.add_argument("out", metavar="OUT", help="an empty or new folder")
    _add_shard_size(parser, SHARD_SIZES[kind])
    told = "resize larger pictures to this shorter side (default: keep the files)"
    if kind in VIDEOS:
        parser.set_defaults(size=None)
    else:
        parser.add_argument("--size", type=count, metavar="PX", help=told)
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out files that cannot be read, and say which"
    )
    _add_common(parser)


def _add_shard_size(parser: argparse.ArgumentParser, size: int) -> None:
    parser.add_argument(
        "--shard-size", type=count, default=size, metavar="N", help=f"samples per shard (default {size})"
    )


def _add_digit_scenes(kinds) -> None:
    parser = kinds.add_parser(
        "digit_scenes",
        help="the embedded set: classes, captions and masks of handwritten digits",
        formatter_class=HelpFormatter,
        epilog="example: dtem shards make digit_scenes data/digits",
    )
    _add_made(parser, "scenes", 64)


def _add_moving_digits(kinds) -> None:
    parser = kinds.add_parser(
        "moving_digits",
        help="the embedded set of clips: how a handwritten digit moves is its class",
        formatter_class=HelpFormatter,
        epilog="example: dtem shards make moving_digits data/moving_digits",
    )
    _add_made(parser, "clips", 32)
    parser.add_argument("--frames", type=count, default=8, metavar="N", help="of a clip (default 8)")
    parser.add_argument(
        "--form", choices=("png", "mp4"), default="png", help="how frames are stored (default png, exact)"
    )


def _add_made(parser: argparse.ArgumentParser, what: str, size: int) -> None:
    """Adds the arguments of the makers of embedded sets."""
    parser.add_argument("out", metavar="OUT", help="an empty or new folder")
    for split, word, number in (("train", "training", 4000), ("val", "validation", 500)):
        told = f"{word} {what} (default {number})"
        parser.add_argument(f"--{split}", type=count, default=number, metavar="N", help=told)
    told = f"pixels per side (default {size})"
    parser.add_argument("--size", type=count, default=size, metavar="PX", help=told)
    _add_shard_size(parser, 500)
    _add_common(parser)


def _add_index(kinds) -> None:
    parser = kinds.add_parser(
        "index",
        help="the manifest of existing shards",
        formatter_class=HelpFormatter,
        epilog="examples:\n  dtem shards make index data/cifar10\n"
        "  dtem shards make index 'https://host/set/train-{000..099}.tar' data/set",
    )
    parser.add_argument(
        "shards",
        metavar="SHARDS",
        help="folder, brace pattern or URL; classes.json beside the shards names the classes",
    )
    parser.add_argument(
        "out", nargs="?", metavar="OUT", help="folder for the manifest (default: beside the shards)"
    )
    _add_workers(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="of the order, or of what is drawn (default 0)")
    _add_workers(parser)


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=count, default=WORKERS, metavar="N", help=f"processes (default {WORKERS})"
    )


def _add_verify(actions) -> None:
    parser = actions.add_parser(
        "verify",
        help="list everything that is wrong with shards; exit code 1 if anything is",
        formatter_class=HelpFormatter,
        epilog="example: dtem shards verify data/digits",
    )
    parser.add_argument("path", metavar="PATH", help="folder, brace pattern, URL, or KIND:SRC")
    parser.add_argument(
        "--quick", action="store_true", help="hashes and structure only; do not decode the samples"
    )
    _add_workers(parser)


def _add_words(actions) -> None:
    parser = actions.add_parser(
        "words",
        help="print the words of the training captions, the most frequent first, as a list for "
        "data.tokenizer.words",
        formatter_class=HelpFormatter,
        epilog="example: dtem shards words data/digits",
    )
    parser.add_argument("path", metavar="PATH", help="folder or brace pattern")
    parser.add_argument(
        "--min-count", type=count, default=1, metavar="N", help="leave out rarer words (default 1: none)"
    )
    parser.add_argument(
        "--caption-field", metavar="NAME", help="field of the json that holds the captions, as caption"
    )


def run(args: argparse.Namespace) -> int:
    if args.action != "make":
        return (shard_tools.RUNS | {"verify": _verify, "words": _words})[args.action](args)
    # makers say what they take and what they leave out
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    makers = {"digit_scenes": _make_digit_scenes, "moving_digits": _make_moving_digits, "index": _make_index}
    return shard_tools.tell(makers.get(args.kind, _make_tree)(args))


def _make_tree(args: argparse.Namespace) -> Path:
    from pipeline.data.layouts.tree import read_tree
    from pipeline.data.make.write import tree_jobs, write_shards

    tree = read_tree(args.kind, Path(args.src))
    jobs = tree_jobs(tree, shard_size=args.shard_size, size=args.size, seed=args.seed, skip_bad=args.skip_bad)
    return write_shards(
        jobs,
        Path(args.out),
        classes=tree.classes,
        mask_classes=tree.mask_classes,
        workers=args.workers,
    )


def _make_digit_scenes(args: argparse.Namespace) -> Path:
    from pipeline.data.make.digits.scenes import CLASSES, MASK_CLASSES, digit_scenes_jobs
    from pipeline.data.make.write import write_shards

    jobs = digit_scenes_jobs(
        train=args.train, val=args.val, size=args.size, shard_size=args.shard_size, seed=args.seed
    )
    return write_shards(
        jobs, Path(args.out), classes=CLASSES, mask_classes=MASK_CLASSES, workers=args.workers
    )


def _make_moving_digits(args: argparse.Namespace) -> Path:
    from pipeline.data.make.digits.moving import MOTIONS, moving_digits_jobs
    from pipeline.data.make.write import write_shards

    names = ("train", "val", "size", "frames", "form", "shard_size", "seed")
    jobs = moving_digits_jobs(**{name: getattr(args, name) for name in names})
    return write_shards(jobs, Path(args.out), classes=MOTIONS, workers=args.workers)


def _make_index(args: argparse.Namespace) -> Path:
    from pipeline.data.make.existing import index_existing

    return index_existing(args.shards, args.out, workers=args.workers)


def _verify(args: argparse.Namespace) -> int:
    from pipeline.data.make.processes import processes
    from pipeline.data.make.verify import verify
    from pipeline.errors import printable

    with processes(args.workers, "shards verified") as mapped:
        found = verify(args.path, quick=args.quick, mapper=mapped)
    for line in (
        *found.problems,
        *(found.histogram.drawn(found.mask_names) if found.histogram.num_samples else ()),
    ):
        print(printable(line))
    print(f"{args.path}: {found.num_samples} samples, {len(found.problems)} problems")
    return 1 if found.problems else 0


def _words(args: argparse.Namespace) -> int:
    """Prints the list of words on stdout, and figures about it on stderr."""
    from pipeline.data.make.word_counts import count_words

    found = count_words(args.path, args.caption_field)
    words = found.vocabulary(args.min_count)
    print(pprint.pformat(words, width=140, compact=True))
    share = sum(found.counts[word] for word in words) / max(1, found.counts.total())
    print(
        f"{args.path}: {found.num_captions} captions; {len(words)} of {len(found.counts)} words, which "
        f"are {share:.2%} of the text; "
        f"the longest caption has {found.longest} words, so context_length={found.longest + 2} cuts none",
        file=sys.stderr,
    )
    return 0
