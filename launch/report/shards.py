"""What is said of shards."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.data.make.look import class_counts, wrong_labels
from pipeline.data.members.clips import kind_of
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.label_noise import TRUE_CLASS, LabelNoise
from pipeline.data.shards.locations import is_remote
from pipeline.data.shards.table import Shard
from pipeline.errors import printable


def lines_about(manifest: Path) -> list[str]:
    """A line about the whole set, and one about its splits."""
    made = load_manifest(str(manifest.parent))
    size = int(made.shards.num_bytes.sum()) / 2**20
    classes = f", {len(made.classes)} classes" if made.classes else ""
    classes += f", {len(made.mask_classes)} mask classes" if made.mask_classes else ""
    members = printable(_members(made.schema))
    return [
        f"{manifest}: {made.num_samples} samples, {len(made.shards)} shards, {size:.1f} MiB{classes}, "
        f"members {members}",
        _splits(made.shards),
        *(printable(f"label noise: {note}") for note in made.label_noise),
    ]


def _members(suffixes: Sequence[str]) -> str:
    """The members, of which frames of clips are told together."""
    frames = [suffix for suffix in suffixes if kind_of(suffix) == "frame"]
    others = [suffix for suffix in suffixes if suffix not in frames]
    return ", ".join([*([f"{frames[0]} to {frames[-1]}"] if frames else []), *others])


def _samples_by_split(shards: Iterable[Shard]) -> Counter[str]:
    samples: Counter[str] = Counter()
    for shard in shards:
        samples[shard.split] += shard.num_samples
    return samples


def _splits(shards: Iterable[Shard]) -> str:
    """A line about the samples of each split, and the way out where none is for evaluation."""
    samples = _samples_by_split(shards)
    if set(samples) == {""}:
        return "no shard names a split: give data.train and data.val a folder or a pattern of their own"
    counts = ", ".join(f"{count} {split or 'of no split'}" for split, count in samples.items())
    return f"samples by split: {counts}" + (
        "" if "val" in samples else "; none to evaluate on: give data.val other shards"
    )


MAX_LISTED = 50
"""Classes of which each has a line."""


def facts_of(source: str) -> dict[str, Any]:
    """What a set holds, as plain data. The labels of a set that is elsewhere are not counted: that would
    fetch all of it. Raises SampleError and StorageError."""
    found = load_manifest(source)
    remote = any(is_remote(place.root) for place in found.shards.places)
    counted = "cls" in found.schema and not remote
    return {
        "set": source,
        "digest": found.digest,
        "places": [place.root for place in found.shards.places],
        "shards": len(found.shards),
        "samples": found.num_samples,
        "bytes": int(found.shards.num_bytes.sum()),
        "hashed": bool((found.shards.sha256 != 0).any(axis=1).all()),
        "members": list(found.schema),
        "splits": dict(_samples_by_split(found.shards)),
        "classes": list(found.classes),
        "mask_classes": list(found.mask_classes),
        "counts": {
            split: {str(label): count for label, count in sorted(counts.items())}
            for split, counts in class_counts(found).items()
        }
        if counted
        else None,
        "label_noise": [note.to_plain() for note in found.label_noise],
        "wrong_labels": wrong_labels(found) if TRUE_CLASS in found.schema and not remote else None,
    }


def lines_of_facts(facts: dict[str, Any]) -> list[str]:
    """The same, to read."""
    mebibytes = facts["bytes"] / 2**20
    lines = [
        f"{facts['set']}: {facts['samples']} samples in {facts['shards']} shards, {mebibytes:.1f} MiB",
        f"members: {_members(facts['members'])}",
        "splits: " + ", ".join(f"{split or 'not named'} {count}" for split, count in facts["splits"].items()),
        f"digest: {facts['digest']}" + ("" if facts["hashed"] else ", without the sha256 of each shard"),
        *(f"place: {place}" for place in facts["places"]),
    ]
    for kind in ("classes", "mask_classes"):
        lines += [f"{kind.replace('_', ' ')}: {len(facts[kind])}"] if facts[kind] else []
    lines += [f"label noise: {LabelNoise.from_plain(note)}" for note in facts["label_noise"]]
    for split, wrong in (facts["wrong_labels"] or {}).items():
        lines.append(f"  {wrong} labels of split {split or 'not named'} differ from {TRUE_CLASS}")
    counts: dict[str, dict[str, int]] | None = facts["counts"]
    if counts is None:
        return [printable(line) for line in [*lines, *_named(facts["mask_classes"] or facts["classes"])]]
    for label, name in enumerate(facts["classes"][:MAX_LISTED]):
        each = [f"{found.get(str(label), 0)} {split}".strip() for split, found in counts.items()]
        lines.append(f"  {label} {name}: {', '.join(each)}")
    if (rest := len(facts["classes"]) - MAX_LISTED) > 0:
        lines.append(f"  ... {rest} more; --json has them all")
    if unread := sum(found.get("-1", 0) for found in counts.values()):
        lines.append(f"  {unread} labels cannot be read; see `dtem shards verify`")
    return [printable(line) for line in lines]


def _named(names: list[str]) -> list[str]:
    listed = [f"  {label} {name}" for label, name in enumerate(names[:MAX_LISTED])]
    rest = len(names) - MAX_LISTED
    return listed + ([f"  ... {rest} more; --json has them all"] if rest > 0 else [])
