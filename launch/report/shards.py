"""What is said of shards that were made."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.table import Shard
from pipeline.errors import printable


def lines_about(manifest: Path) -> list[str]:
    """A line about the whole set, and one about its splits."""
    made = load_manifest(str(manifest.parent))
    size = int(made.shards.num_bytes.sum()) / 2**20
    classes = f", {len(made.classes)} classes" if made.classes else ""
    classes += f", {len(made.mask_classes)} mask classes" if made.mask_classes else ""
    members = printable(", ".join(made.schema))
    return [
        f"{manifest}: {made.num_samples} samples, {len(made.shards)} shards, {size:.1f} MiB{classes}, "
        f"members {members}",
        _splits(made.shards),
    ]


def _splits(shards: Iterable[Shard]) -> str:
    """A line about the samples of each split, and the way out where none is for evaluation."""
    samples: Counter[str] = Counter()
    for shard in shards:
        samples[shard.split] += shard.num_samples
    if set(samples) == {""}:
        return "no shard names a split: give data.train and data.val a folder or a pattern of their own"
    counts = ", ".join(f"{count} {split or 'of no split'}" for split, count in samples.items())
    return f"samples by split: {counts}" + (
        "" if "val" in samples else "; none to evaluate on: give data.val other shards"
    )
