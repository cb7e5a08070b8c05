"""The actions of `dtem shards` on sets that there are: info, cat, bench, repair, split, merge, label,
corrupt-labels."""

import argparse
from pathlib import Path

from launch.commands.arguments import HelpFormatter, add_setting_arguments
from launch.commands.values import count, share

SET = "a folder of shards, a brace pattern, a URL, a folder of class folders, or KIND:SRC"
SHARD_SIZE = 1000
EXAMPLE_RATE = 1000
"""Samples a second for which `bench` counts cores where no rate is given."""


def add_parsers(actions, workers: int) -> None:
    info = _parser(actions, "info", "what a set holds: shards, splits, members, classes with their counts")
    info.add_argument("set", metavar="SET", help=SET)
    info.add_argument("--json", action="store_true", help="print it as JSON")
    cat = _parser(actions, "cat", "the members of one sample; exit code 1 where there is none of this key")
    cat.add_argument("set", metavar="SET", help=SET)
    cat.add_argument("key", metavar="KEY")
    cat.add_argument("--out", metavar="DIR", help="write the members to files here")
    bench = _parser(actions, "bench", "how fast a set is read, decoded, augmented, and loaded by workers")
    bench.add_argument("set", metavar="SET", help=SET)
    bench.add_argument("--schema", default="classification", help="default classification")
    bench.add_argument("--img-size", type=count, default=224, metavar="PX", help="of the crop (default 224)")
    bench.add_argument("--rand-augment", metavar="POLICY", help="such as rand-m9-mstd0.5-inc1")
    bench.add_argument("--on-device", action="store_true", help="compute it on the device, not in workers")
    bench.add_argument(
        "--decode",
        choices=("worker", "scaled", "cuda"),
        default="worker",
        help="how JPEGs are decoded, as data.decode (default worker)",
    )
    add_setting_arguments(bench, "of a task's data, for instance augment.color_jitter=0.4")
    bench.add_argument(
        "--rate", type=count, metavar="N", help="samples/s that a GPU trains on: how many cores it takes"
    )
    bench.add_argument("--workers", type=_counts, default=[0, workers], metavar="N,N", help="of a loader")
    bench.add_argument("--samples", type=count, default=512, metavar="N", help="default 512")
    bench.add_argument("--batch-size", type=count, default=32, metavar="N", help="default 32")
    bench.add_argument("--out", metavar="FILE", help="also write the rates to this file, as JSON")
    repair = _parser(actions, "repair", "write a set anew without its damaged samples, and say which")
    repair.add_argument("set", metavar="SET", help="a folder of shards, or a brace pattern")
    split = _parser(actions, "split", "write a set anew with a part of its training samples held out")
    split.add_argument("set", metavar="SET", help=SET)
    merge = _parser(actions, "merge", "write several sets as one, with the classes of all")
    merge.add_argument("set", metavar="SET", nargs="+", help=SET)
    label = _parser(actions, "label", "write a set anew with the classes of a table, by the samples' keys")
    label.add_argument("set", metavar="SET", help=SET)
    label.add_argument(
        "table", metavar="TABLE", help=".csv or .jsonl with key, and label (one class) or labels (several)"
    )
    corrupt = _parser(
        actions, "corrupt-labels", "write a set anew with wrong labels among its training samples"
    )
    corrupt.add_argument("set", metavar="SET", help=SET)
    for parser in (repair, split, merge, label, corrupt):
        parser.add_argument("out", metavar="OUT", help="an empty or new folder")
        parser.add_argument(
            "--workers", type=count, default=workers, metavar="N", help=f"processes (default {workers})"
        )
    for parser in (split, merge, label, corrupt):
        parser.add_argument(
            "--shard-size",
            type=count,
            default=SHARD_SIZE,
            metavar="N",
            help=f"samples per shard (default {SHARD_SIZE})",
        )
    split.add_argument(
        "--held-out", type=share, default=0.1, metavar="F", help="share to hold out, by a hash of the key"
    )
    split.add_argument("--name", default="val", metavar="SPLIT", help="of the held-out part (default val)")
    merge.add_argument("--seed", type=int, default=0, help="of the order (default 0)")
    merge.add_argument(
        "--prefix", action="store_true", help="let keys begin with the number of their set, as in 0/KEY"
    )
    _add_noise(corrupt)


def _add_noise(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--noise",
        choices=("symmetric", "asymmetric"),
        required=True,
        help="symmetric: a wrong label is any other class; asymmetric: the next class, or by --flips",
    )
    parser.add_argument(
        "--rate", type=share, required=True, metavar="F", help="share of the training labels, such as 0.4"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument(
        "--flips",
        type=Path,
        metavar="FILE",
        help='JSON of what becomes what, as {"cat": "dog", "dog": "cat"}',
    )


EXAMPLES = {
    "bench": "dtem shards bench data/imagenet --rand-augment rand-m9-mstd0.5-inc1 --workers 0,4,8",
    "label": "dtem shards label data/cc3m tags.csv data/cc3m_tags",
    "corrupt-labels": "dtem shards corrupt-labels data/cifar10 data/noisy --noise symmetric --rate 0.4",
    "info": "dtem shards info data/digits",
    "cat": "dtem shards cat data/digits 000123 --out sample",
    "repair": "dtem shards repair data/digits data/digits_repaired",
    "split": "dtem shards split data/photos data/photos_split --held-out 0.05",
    "merge": "dtem shards merge data/first data/second data/both",
}


def _parser(actions, name: str, what: str) -> argparse.ArgumentParser:
    return actions.add_parser(
        name, help=what, formatter_class=HelpFormatter, epilog=f"example: {EXAMPLES[name]}"
    )


def _counts(text: str) -> list[int]:
    values = [int(part) for part in text.split(",")]
    if min(values) < 0 or max(values) > 256:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of numbers from 0 to 256, such as 0,2,4")
    return values


def tell(manifest: Path) -> int:
    """Says what was made."""
    from launch.report.shards import lines_about

    for line in lines_about(manifest):
        print(line)
    return 0


def _info(args: argparse.Namespace) -> int:
    import json

    from launch.report.shards import facts_of, lines_of_facts

    facts = facts_of(args.set)
    for line in [json.dumps(facts, indent=1)] if args.json else lines_of_facts(facts):
        print(line)
    return 0


def _bench(args: argparse.Namespace) -> int:
    import json

    from launch.bench.shards import cores_for, measure, settings, words_on
    from launch.report.tables import markdown
    from pipeline.config.build import plain
    from pipeline.files import file_place, write_text

    given = {
        "schema": args.schema,
        "train": args.set,
        "img_size": args.img_size,
        "batch_size": args.batch_size,
        "decode": args.decode,
        "augment": {"rand_augment": args.rand_augment, "on_device": args.on_device},
    }
    config = settings(given, args.cfg_options)
    out = file_place(args.out) if args.out else None
    rates = measure(config, args.workers, args.samples)
    columns = ["stage", "workers", "samples/s", "MB/s"]
    rows = [
        [own["stage"], str(own["workers"]), f"{own['samples_per_s']:.1f}", f"{own['megabytes_per_s']:.2f}"]
        for own in rates
    ]
    print(markdown(columns, rows))
    rate = args.rate or EXAMPLE_RATE
    for line in words_on(config, rate, rates):
        print(line)
    if out:
        facts = {"set": args.set, "data": plain(config), "samples": args.samples, "rates": rates}
        facts["cores"] = {"samples_per_s": rate, "cores": cores_for(rate, rates)}
        print(f"wrote {write_text(out, json.dumps(facts, indent=1))}")
    return 0


def _cat(args: argparse.Namespace) -> int:
    from pipeline.data.make.look import find_sample, told
    from pipeline.errors import printable
    from pipeline.files import write_bytes

    found = find_sample(args.set, args.key)
    if found is None:
        print(f"{printable(args.set)} has no sample '{printable(args.key)}'")
        return 1
    print(printable(f"{found.shard}, sample {found.number}, split {found.split or 'not named'}"))
    for suffix, data in found.members.items():
        print(printable(f"{suffix}: {told(suffix, data)}"))
    if args.out:
        folder = Path(args.out)
        folder.mkdir(parents=True, exist_ok=True)
        stem = "".join(char if char.isalnum() or char in "-_" else "_" for char in args.key)
        for suffix, data in found.members.items():
            write_bytes(folder / f"{stem}.{suffix}", data)
        print(f"wrote {len(found.members)} files to {args.out}")
    return 0


def _repair(args: argparse.Namespace) -> int:
    from pipeline.data.make.processes import processes
    from pipeline.data.make.repair import repair
    from pipeline.errors import printable

    with processes(args.workers, "shards verified") as mapped:
        found = repair(args.set, Path(args.out), workers=args.workers, mapper=mapped)
    for line in (*found.problems, *(f"left out: {line}" for line in found.left_out)):
        print(printable(line))
    print(f"{found.kept} samples are kept")
    return tell(found.manifest)


def _split(args: argparse.Namespace) -> int:
    from pipeline.data.make.rewrite import split_set
    from pipeline.data.shards.manifest import MANIFEST

    split_set(
        args.set,
        Path(args.out),
        share=args.held_out,
        name=args.name,
        shard_size=args.shard_size,
        workers=args.workers,
    )
    return tell(Path(args.out, MANIFEST))


def _label(args: argparse.Namespace) -> int:
    from pipeline.data.make.rewrite import label_set
    from pipeline.data.shards.manifest import MANIFEST

    unused = label_set(
        args.set, Path(args.table), Path(args.out), shard_size=args.shard_size, workers=args.workers
    )
    if unused:
        print(f"{unused} rows of {args.table} have no sample")
    return tell(Path(args.out, MANIFEST))


def _corrupt(args: argparse.Namespace) -> int:
    from pipeline.data.make.look import wrong_labels
    from pipeline.data.make.noisy_labels import corrupt_labels, read_flips
    from pipeline.data.shards.find import load_manifest
    from pipeline.data.shards.label_noise import LabelNoise

    flips = read_flips(args.flips) if args.flips else ()
    noise = LabelNoise(args.noise, args.rate, args.seed, flips)
    path = corrupt_labels(args.set, Path(args.out), noise, shard_size=args.shard_size, workers=args.workers)
    wrong = sum(wrong_labels(load_manifest(args.out)).values())
    print(f"{wrong} labels are wrong now; each sample has its true one in true.cls")
    return tell(path)


def _merge(args: argparse.Namespace) -> int:
    from pipeline.data.make.rewrite import merge_sets

    path, tables = merge_sets(
        args.set,
        Path(args.out),
        prefixed=args.prefix,
        shard_size=args.shard_size,
        seed=args.seed,
        workers=args.workers,
    )
    for source, numbers in zip(args.set, tables.numbers, strict=True):
        if numbers is not None:
            print(f"{source}: its labels have other numbers now, by the names of their classes")
    return tell(path)


RUNS = {
    "info": _info,
    "cat": _cat,
    "bench": _bench,
    "repair": _repair,
    "split": _split,
    "merge": _merge,
    "label": _label,
    "corrupt-labels": _corrupt,
}
