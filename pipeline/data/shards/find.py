"""Finds the manifest of what a user names as data, and checks it against the shards before training."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.layouts.splits import split_of
from pipeline.data.shards.cache import ShardCache
from pipeline.data.shards.locations import (
    expand,
    is_remote,
    join,
    local_shards,
    sets_of,
    split,
    split_folders,
    tar_names,
)
from pipeline.data.shards.loose import HELD_OUT, Loose, found_in, loose_manifest, loose_of
from pipeline.data.shards.manifest import MANIFEST, Manifest, remedy
from pipeline.data.shards.present import check_sample
from pipeline.data.shards.stored import read_manifest
from pipeline.data.shards.table import ShardTable, concatenated
from pipeline.data.shards.unlisted import index_now
from pipeline.errors import SampleError


def load_manifest(
    source: str | Sequence[str],
    subset: str | None = None,
    *,
    checked: bool = True,
    cache: ShardCache | None = None,
    weights: Sequence[float] | None = None,
) -> Manifest:
    """The manifest of a folder, brace pattern, list of tars, or URL of those; of several sets by a list, or
    by `a::b`.

    subset: the split to take from a folder whose shards name their splits. A folder in which no shard does is
    one set; tars and patterns are taken as given. Local shards without a manifest are indexed once on each
    machine, in `cache` (None: the default one).
    checked: whether SAMPLED of the shards are compared with the manifest. The number of requests does not
    grow with that of the shards. weights: of each of the sets, see `Manifest.weights`. Raises SampleError
    for anything that does not fit.
    """
    names = sets_of(source)
    if weights is None or not names:
        manifest = _as_one(names, subset, cache)
    else:
        manifest = _mixed(names, weights, subset, cache)
    if checked:
        check_sample(manifest)
    return manifest


def _as_one(names: Sequence[str], subset: str | None, cache: ShardCache | None) -> Manifest:
    """The shards of these places, as one set."""
    locations = [location for name in names for location in ([name] if loose_of(name) else expand(name))]
    if not locations:
        raise SampleError(
            "no shards are given: give a folder, a pattern such as 'train-{00000..00008}.tar', or a "
            "list of tars"
        )
    return _joined([_load(group, subset, cache) for group in _groups(locations)])


def _mixed(
    names: Sequence[str], weights: Sequence[float], subset: str | None, cache: ShardCache | None
) -> Manifest:
    """The shards of these places, each of which has a weight."""
    if len(names) != len(weights):
        raise SampleError(f"{len(names)} sets are given and {len(weights)} weights; give a weight for each")
    parts = [_as_one([name], subset, cache) for name in names]
    for name, weight, part in zip(names, weights, parts, strict=True):
        if round(weight * part.num_samples) < 1:
            raise SampleError(
                f"{name}: by the weight {weight:g} none of its {part.num_samples} samples comes in an epoch; "
                f"give {1 / part.num_samples:.2g} or more, or leave the set out"
            )
    counts = [len(part.shards) for part in parts]
    manifest = _joined(parts)
    if all(weight == 1 for weight in weights):
        return manifest
    return replace(manifest, weights=tuple(zip(counts, map(float, weights), strict=True)))


def split_named(
    source: str | Sequence[str], subset: str, *, checked: bool = True, cache: ShardCache | None = None
) -> Manifest:
    """The shards of `source` that name the split themselves. Raises SampleError that lists the splits where
    none does. checked, cache: see load_manifest."""
    whole = load_manifest(source, checked=False, cache=cache)
    chosen = np.flatnonzero(whole.shards.splits == subset)
    if not len(chosen):
        counts = _counted(whole.shards.splits.tolist())
        way_out = f"; give a set of its own, or hold out a share: {hint}" if (hint := _hint(whole)) else ""
        raise SampleError(f"{source} has no shard of split '{subset}'; {counts}{way_out}")
    manifest = _taken(whole, chosen)
    if checked:
        check_sample(manifest)
    return manifest


def _hint(manifest: Manifest) -> str:
    """The location of a set in files of its own, of which a share is held out; empty for others."""
    kinds = [place.loose.kind for place in manifest.shards.places if place.loose is not None]
    return f"{kinds[0]}:{manifest.shards.places[0].root}?{HELD_OUT}=0.1" if kinds else ""


def _load(group: list[str], subset: str | None, cache: ShardCache | None) -> Manifest:
    """What locations of one of `_groups` hold."""
    if (loose := loose_of(group[0])) is not None:
        return _of_loose(loose, subset)
    if group[0].endswith(".tar"):
        return _load_tars(group, cache)
    return _load_folder(group[0], subset, cache)


def _of_loose(loose: Loose, subset: str | None) -> Manifest:
    """The split of a set in files of its own."""
    manifest = loose_manifest(loose)
    chosen = _of_split(manifest.shards.splits.tolist(), subset, str(loose))
    return _taken(manifest, chosen)


def _groups(locations: list[str]) -> list[list[str]]:
    """Locations that are read together: neighbouring tars of one folder, or one folder."""
    groups: list[list[str]] = []
    for location in locations:
        before = groups[-1][0] if groups else ""
        tars = before.endswith(".tar") and location.endswith(".tar")
        if tars and split(before)[0] == split(location)[0]:
            groups[-1].append(location)
        else:
            groups.append([location])
    return groups


def _load_folder(folder: str, subset: str | None, cache: ShardCache | None) -> Manifest:
    manifest = read_manifest(folder, cache)
    if manifest is None:
        tars = local_shards(folder)
        if not tars and (inside := split_folders(folder)):
            return _of_split_folders(folder, inside, subset, cache)
        if not tars and (loose := found_in(folder)) is not None:
            return _of_loose(loose, subset)
        if not tars:
            raise SampleError(
                f"{folder}: no manifest and no .tar in it; make shards with `dtem shards make --help`"
            )
        chosen = _of_split([split_of(split(tar)[1]) for tar in tars], subset, folder)
        return index_now([tars[number] for number in chosen], cache)
    if not is_remote(folder):
        _refuse_unlisted(folder, manifest)
    chosen = _of_split(manifest.shards.splits.tolist(), subset, folder)
    # the whole one knows its digest
    return manifest if len(chosen) == len(manifest.shards) else _taken(manifest, chosen)


def _of_split_folders(
    folder: str, inside: Mapping[str, str], subset: str | None, cache: ShardCache | None
) -> Manifest:
    """The shards of FOLDER/SPLIT/*.tar. inside: split -> its folder."""
    if subset is not None and subset not in inside:
        raise SampleError(
            f"{folder} has no folder of split '{subset}'; its shards lie in {', '.join(inside)}"
        )
    chosen = inside if subset is None else {subset: inside[subset]}
    return _joined([_named(_load_folder(path, None, cache), split) for split, path in chosen.items()])


def _named(manifest: Manifest, split: str) -> Manifest:
    """The shards, all of them of this split."""
    words = np.full(len(manifest.shards), split)
    return replace(manifest, shards=replace(manifest.shards, splits=words))


def _taken(manifest: Manifest, numbers: NDArray[Any] | Sequence[int]) -> Manifest:
    """The shards of these numbers."""
    return replace(manifest, shards=manifest.shards.take(numbers))


def _refuse_unlisted(folder: str, manifest: Manifest) -> None:
    """Raises SampleError for tars beside the manifest that it does not list, for instance copied there later:
    nothing would read them."""
    listed = {name.decode() for name in manifest.shards.names.tolist()}
    others = [join(folder, name) for name in tar_names(folder) if name not in listed]
    if others:
        raise SampleError(
            f"{join(folder, MANIFEST)} does not list {others[0]} ({len(others)} of the shards there); "
            f"make it anew: {remedy(folder)}. "
            "To do without them give a pattern of those that are meant, or take the others away"
        )


def _of_split(words: Sequence[str], subset: str | None, folder: str) -> list[int]:
    """Numbers of the shards of one split; of all of them where no shard names a split. words: the split that
    each shard names, which may be empty."""
    there = set(words)
    if subset is None or there == {""}:
        return list(range(len(words)))
    if subset in there and "" not in there:
        return [number for number, own in enumerate(words) if own == subset]
    why = "cannot be divided into splits" if subset in there else f"has no shard of split '{subset}'"
    raise SampleError(
        f"{folder} {why}: {_counted(words)}. Give the shards by a pattern, for instance "
        f"'{folder}/part-{{000..012}}.tar', or make the set anew with this split (`dtem shards make --help`)"
    )


def _counted(splits: Iterable[str]) -> str:
    """`2 shards name train, 1 names none`"""
    counts = sorted(Counter(splits).items())
    return ", ".join(
        f"{count} {'shard names' if count == 1 else 'shards name'} {own or 'no split'}"
        for own, count in counts
    )


def _load_tars(tars: list[str], cache: ShardCache | None) -> Manifest:
    folder = split(tars[0])[0]
    manifest = read_manifest(folder, cache)
    if manifest is None:
        return index_now(tars, cache)
    known = {name.decode(): number for number, name in enumerate(manifest.shards.names.tolist())}
    missing = [tar for tar in tars if split(tar)[1] not in known]
    if missing:
        count = f"{missing[0]} ({len(missing)} such shards)"
        raise SampleError(f"{join(folder, MANIFEST)} does not list {count}; make it anew: {remedy(folder)}")
    return _taken(manifest, [known[split(tar)[1]] for tar in tars])


def _joined(parts: list[Manifest]) -> Manifest:
    first = parts[0]
    if len(parts) == 1 and len(first.shards) == len(set(first.shards.names.tolist())):
        return first
    if any((part.classes, part.mask_classes) != (first.classes, first.mask_classes) for part in parts):
        raise SampleError("the shards come from sets with different classes; give shards of one set")
    shards = concatenated([part.shards for part in parts])
    _refuse_twice(shards)
    schema = tuple(sorted({suffix for part in parts for suffix in part.schema}))
    noise = tuple(dict.fromkeys(note for part in parts for note in part.label_noise))
    return Manifest(shards, schema, first.classes, first.mask_classes, label_noise=noise)


def _refuse_twice(shards: ShardTable) -> None:
    roots = [place.root for place in shards.places]
    twice = Counter(zip((roots[at] for at in shards.place.tolist()), shards.names.tolist(), strict=True))
    (root, name), count = twice.most_common(1)[0]
    if count > 1:
        raise SampleError(f"shard {join(root, name.decode())} is given twice")
