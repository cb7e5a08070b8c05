"""Writes the tables of docs/scale.md from the record, so that no figure in them is typed.

    python benchmarks/scale_table.py     # after the record has changed

`tests/benchmarks/test_scale.py` fails where a table is not what the record says.
"""

import re
from math import ceil
from typing import Any

from page_table import filled, table
from results_table import ROOT, link, results_of

PAGE = ROOT / "docs/scale.md"
RECORD = "scale"
_OF_CLUSTER = re.compile(r"(\d+) shards, (\d+) machines(?:, begun on (\d+))?")
_OF_RUN = re.compile(r"(\d+) GPUs, (.*)")
STEP_OF_CACHE = 8
"""GiB to which the cache to set is rounded up, after a quarter is added."""


def scores() -> dict[str, Any]:
    """Maps the name of each result of the record to its figures."""
    return {one["name"]: one["scores"] for one in results_of(RECORD)}


def clusters() -> str:
    rows = []
    for name, found in scores().items():
        if match := _OF_CLUSTER.fullmatch(name):
            shards, machines, begun = match.groups()
            rows.append(
                (
                    f"{int(shards):,}",
                    f"{int(machines):,}" + (f", begun on {int(begun):,}" if begun else ""),
                    f"{found['lanes']}",
                    f"{cache_gib(found)}",
                    f"{found['shards fetched per shard used']:.2f}, {found['most of a machine']:.2f}",
                    f"{100 * found['share of needed shards that came late']:.2f} %",
                    f"{found['shards kept']}",
                    f"{found['Gbit/s of a machine']:.1f}",
                    f"{found['seconds until the first step']:.1f}",
                )
            )
    head = (
        "shards",
        "machines",
        "`data.lanes`",
        "`data.cache_gib`",
        "fetched: mean, most",
        "late",
        "shards kept",
    )
    return table((*head, "Gbit/s", "first step, s"), rows)


def cache_gib(found: dict[str, Any]) -> int:
    """data.cache_gib to set: what is kept and a quarter more."""
    return STEP_OF_CACHE * ceil(1.25 * found["GiB kept"] / STEP_OF_CACHE)


def plans() -> str:
    rows = [
        (name.removeprefix("plan of "), *(f"{value}" for value in found.values()))
        for name, found in scores().items()
        if name.startswith("plan of ")
    ]
    return table(
        ("set", "lanes", "s to enter", "s to look ahead first", "us a sample", "MiB a process"), rows
    )


def checkpoints() -> str:
    rows = [
        (f"`{name.split()[-1]}`", *(f"{value}" for value in found.values()))
        for name, found in scores().items()
        if name.startswith("checkpoint of vit")
    ]
    return table(("model", "million parameters", "GiB", "s at 0.5 GiB/s", "s at 2 GiB/s"), rows)


def saves() -> str:
    rows = []
    for name, found in scores().items():
        if match := _OF_RUN.fullmatch(name):
            short, long = found.values()
            rows.append(
                (
                    match[2],
                    f"{int(match[1]):,}",
                    f"{short['hours between failures']:,}",
                    *(f"{one[key]}" for one in (short, long) for key in ("minutes between saves", "lost %")),
                )
            )
    head = ("published", "GPUs", "hours between failures", "save every, min (2 s)", "lost %")
    return table((*head, "save every, min (60 s)", "lost %"), rows)


TABLES = {"clusters": clusters, "plans": plans, "checkpoints": checkpoints, "saves": saves}


def written(text: str) -> str:
    """The page with its tables as the record has them."""
    return filled(text, TABLES)


def main() -> None:
    PAGE.write_text(written(PAGE.read_text()))
    print(f"wrote {PAGE.relative_to(ROOT)} from {link(RECORD)}")


if __name__ == "__main__":
    main()
