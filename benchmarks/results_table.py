"""Writes the README's table of results from the records, so that no figure in it is typed.

    python benchmarks/results_table.py     # after a record has changed

`tests/benchmarks/test_results_table.py` fails where the README's table is not what the records say.
"""

import json
import re
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
COLUMNS = ("task", "data", "MACs", "ours", "ToMe", "untrained", "unmerged", "record")
NONE = "-"
"""A cell that no record fills."""


class Scored(NamedTuple):
    """Rows of a record that compares policies at one point per result."""

    task: str
    data: str
    record: str
    metric: str = ""
    """The results whose name starts with it."""

    def rows(self) -> list[tuple[str, ...]]:
        results = [one for one in results_of(self.record) if one["name"].startswith(self.metric)]
        return [self._row(one) for one in results]

    def _row(self, result: dict[str, Any]) -> tuple[str, ...]:
        reduction = result["reduction"]
        early = "" if any(reduction[len(reduction) // 2 :]) else ", early merges"
        found = result["scores"]
        scores = (
            f"{mean(found[name]):.1f}" if name in found else NONE
            for name in ("dtem", "tome", "dtem_untrained", "none")
        )
        return (
            self.task,
            self.data + early,
            f"{100 * result['macs_ratio']:.0f} %",
            *scores,
            link(self.record),
        )


class Timed(NamedTuple):
    """One row of ratios to the unmerged model. ours, tome: how the names of their results begin. among: words
    of the one result that is meant, see `named`."""

    task: str
    data: str
    record: str
    ours: str
    tome: str = ""
    among: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, ...]]:
        ours, tome = (
            f"{named(self.record, name, self.among)['ratio']['median']:.2f}" if name else NONE
            for name in (self.ours, self.tome)
        )
        return [(self.task, self.data, NONE, ours, tome, NONE, f"{1:.2f}", link(self.record))]


TOP1, MIOU, CIDER, SALIENCY, SPEED = (
    "classification, top-1 %",
    "segmentation, mIoU %",
    "captioning, CIDEr x 100",
    "saliency, divergence x 1e4",
    "images/s",
)
TABLE: tuple[Scored | Timed, ...] = (
    Scored(TOP1, "CIFAR-10", "cifar10_dtem_vs_tome"),
    Scored(TOP1, "digit scenes", "digits_multitask_dtem_vs_tome", "top1"),
    Scored(TOP1, "digit scenes", "digits_multitask_dtem_vs_tome_even", "top1"),
    Scored(TOP1, "clips of moving digits", "moving_digits_dtem_vs_tome", "top1"),
    Scored(MIOU, "CamVid", "camvid_dtem_vs_tome"),
    Scored(MIOU, "CamVid", "camvid_dtem_vs_tome_even"),
    Scored(MIOU, "digit scenes", "digits_multitask_dtem_vs_tome", "mIoU"),
    Scored(MIOU, "digit scenes", "digits_multitask_dtem_vs_tome_even", "mIoU"),
    Scored(CIDER, "CIFAR-10 scenes", "scenes_captioning_dtem_vs_tome", "CIDEr"),
    Scored(CIDER, "digit scenes", "digits_multitask_dtem_vs_tome", "CIDEr"),
    Scored(CIDER, "digit scenes", "digits_multitask_dtem_vs_tome_even", "CIDEr"),
    Scored(SALIENCY, "CamVid, pretrained ViT-S/14", "vit_small_saliency_dtem_vs_tome"),
    Timed(
        SPEED,
        "DeiT-small, 224x224, r = 16",
        "inference_cpu",
        "ours_dtem vs timm",
        "ours_tome vs timm",
        ("2 threads", "batch 16,"),
    ),
    Timed(
        SPEED,
        "ViT-small, 512x512, half merged",
        "segmentation_cpu",
        "images/s, unmerged by residual, over r = 0; merged in 100% of the blocks",
        among=("2 threads", "batch 4,"),
    ),
    Timed(
        SPEED,
        "ViT-small, 512x512, half merged, early merges",
        "segmentation_cpu",
        "images/s, unmerged by residual, over r = 0; merged in 50% of the blocks",
        among=("2 threads", "batch 4,"),
    ),
)


def results_of(record: str) -> list[dict[str, Any]]:
    return json.loads((ROOT / f"benchmarks/records/{record}.json").read_text())["results"]


def named(record: str, start: str, among: tuple[str, ...] = ()) -> dict[str, Any]:
    """The result whose name this is, or starts so. Of several, those with each word of `among` that tells
    them apart. Raises SystemExit where there is not exactly one."""
    starts = [one for one in results_of(record) if one["name"].startswith(start)]
    found = [one for one in starts if one["name"] == start] or starts
    for word in among:
        found = [one for one in found if word in one["name"]] or found
    if len(found) != 1:
        raise SystemExit(f"{record} has {len(found)} results '{start}...' with {', '.join(among)}")
    return found[0]


def link(record: str) -> str:
    return f"[{record}](benchmarks/records/{record}.json)"


def table() -> str:
    """The table as the README has it: a header, a rule and one line per row."""
    rows = [COLUMNS, ("---", "---", *["---:"] * 5, "---"), *(row for part in TABLE for row in part.rows())]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def tome_below() -> float:
    """By how many points ToMe's share of the MACs is below ours, at most."""
    points = [
        one["policies"]
        for part in TABLE
        if isinstance(part, Scored)
        for one in results_of(part.record)
        if "policies" in one
    ]
    return 100 * max(point["dtem"]["macs_ratio"] - point["tome"]["macs_ratio"] for point in points)


def found_in(page: str) -> str:
    """The table in the text of a page. Raises SystemExit where there is not exactly one."""
    header = re.escape(f"| {' | '.join(COLUMNS)} |\n")
    tables = re.findall(rf"^{header}(?:\|.*\n)*", page, re.M)
    if len(tables) != 1:
        raise SystemExit(
            f"README.md has {len(tables)} tables of results; leave one with the columns {COLUMNS}"
        )
    return tables[0]


def main() -> None:
    page = README.read_text()
    README.write_text(page.replace(found_in(page), table()))
    print(table(), end="")


if __name__ == "__main__":
    main()
