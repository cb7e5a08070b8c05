"""A set whose training labels are wrong on purpose, to try out how one learns from such labels."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from pipeline.data.make.rewrite import Stored, by_split, forget, reader_of
from pipeline.data.make.verify import opened
from pipeline.data.make.write import jobs_of, write_shards
from pipeline.data.members.decode import decode_class
from pipeline.data.shards.label_noise import SYMMETRIC, TRUE_CLASS, LabelNoise
from pipeline.data.shards.manifest import Manifest
from pipeline.errors import ConfigError, SampleError, first_few
from pipeline.rng import uniform

TRAIN = "train"


def corrupt_labels(source: str, out: Path, noise: LabelNoise, *, shard_size: int, workers: int) -> Path:
    """Writes a set anew, with noise in the labels of its training samples: split train, or all where it names
    no split. Other splits keep their labels. Each sample gets a member `true.cls`, the class that it had. The
    manifest notes the noise. Returns its path.

    Raises ConfigError where samples have no one class, where labels are noisy already, and for noise that
    the classes do not allow (see `check_noise`).
    """
    forget()
    manifest = opened(source)
    _refuse(source, manifest)
    check_noise(noise, manifest.classes)
    splits = by_split([source], lambda own, key: own or TRAIN)
    if TRAIN not in splits:
        raise ConfigError(f"{source} has no samples to train on; its splits are {', '.join(splits)}")
    jobs = []
    for split, items in splits.items():
        own = noise if split == TRAIN else None
        make = partial(_relabelled, source=source, noise=own, classes=manifest.classes)
        jobs += jobs_of(split, items, make, shard_size)
    names = {"classes": manifest.classes, "mask_classes": manifest.mask_classes}
    return write_shards(jobs, out, **names, label_noise=(noise,), workers=workers)


def _refuse(source: str, manifest: Manifest) -> None:
    if "cls" not in manifest.schema:
        raise ConfigError(
            f"{source} has no samples with one class each (a member cls; it has "
            f"{', '.join(manifest.schema)}), and noise in labels is for these"
        )
    if manifest.label_noise or TRUE_CLASS in manifest.schema:
        raise ConfigError(f"the labels of {source} are noisy already; give the set that it was made of")


def check_noise(noise: LabelNoise, classes: Sequence[str]) -> None:
    """Raises ConfigError for noise of which nothing could be learned: some class would get as many labels of
    another as of its own. Also for a share outside (0, 1), and for flips that are not of these classes."""
    if len(classes) < 2:
        raise ConfigError(f"the set has {len(classes)} class, and a wrong label needs another one")
    most = 1 - 1 / len(classes) if noise.kind == SYMMETRIC else 0.5
    if not 0 < noise.rate < most:
        raise ConfigError(
            f"{noise.kind} noise of {noise.rate:g} in {len(classes)} classes leaves no class most of its "
            f"labels; give a rate above 0 and below {most:.4g}"
        )
    if noise.flips and noise.kind == SYMMETRIC:
        raise ConfigError("symmetric noise names any other class; give flips with asymmetric noise")
    if strange := [name for flip in noise.flips for name in flip if name not in classes]:
        raise ConfigError(
            f"flips name the class {strange[0]!r:.60}, and there are {first_few(list(classes), 6, ', ')}"
        )
    if same := [before for before, after in noise.flips if before == after]:
        raise ConfigError(f"flips let the class {same[0]!r:.60} become itself; leave it out, it is kept then")


def read_flips(path: Path) -> tuple[tuple[str, str], ...]:
    """What becomes what, from JSON such as {"truck": "automobile", "cat": "dog"}. Raises ConfigError."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise ConfigError(f'{path}: {err}; give JSON, such as {{"cat": "dog"}}') from err
    if not isinstance(plain, dict) or not plain or not all(isinstance(name, str) for name in plain.values()):
        raise ConfigError(f'{path} is no JSON object of class names, such as {{"cat": "dog"}}')
    return tuple(plain.items())


def noisy_label(noise: LabelNoise, key: str, label: int, classes: Sequence[str]) -> int:
    """The label that a sample gets: a pure function of the arguments. Whether it is wrong does not depend on
    the label."""
    if uniform(noise.seed, "label noise", key) >= noise.rate:
        return label
    if noise.kind == SYMMETRIC:
        other = int(uniform(noise.seed, "other class", key) * (len(classes) - 1))
        return other + (other >= label)
    if not noise.flips:
        return (label + 1) % len(classes)
    return classes.index(dict(noise.flips).get(classes[label], classes[label]))


def _relabelled(
    items: Sequence[Stored], source: str, noise: LabelNoise | None, classes: tuple[str, ...]
) -> Iterator[tuple[str, Mapping[str, bytes]]]:
    """Key and members of each sample. noise: None where labels stay. Raises SampleError for a label that is
    none."""
    for item in items:
        members = dict(reader_of(source).read(item.shard, item.sample))
        try:
            true = decode_class(members.get("cls", b""), len(classes))
        except SampleError as err:
            raise SampleError(
                f"{source}, sample '{item.key}': {err}; `dtem shards repair` leaves such samples out"
            ) from err
        label = true if noise is None else noisy_label(noise, item.key, true, classes)
        yield item.key, members | {"cls": str(label).encode(), TRUE_CLASS: str(true).encode()}
