"""What commands take in place of runs: a published model, and its data where they read any."""

import argparse
from pathlib import Path

from launch.published.contrastive import is_clip
from launch.published.labelled import PublishedRun, names_classes_of, published_run
from launch.published.pictures import ShardPictures, find_pictures
from pipeline.backbone.adapters.adapter import Adapter
from pipeline.backbone.adapters.public import load_adapter
from pipeline.backbone.published import TIMM, Published, is_published, open_published
from pipeline.data.shards.loose import found_in, loose_manifest
from pipeline.errors import ConfigError

GIVEN = {
    "data": None,
    "adapter": None,
    "weights": None,
    "no_pretrained": False,
    "img_size": None,
    "signal": None,
}
"""Arguments of a published model -> their defaults."""


def published_of(args: argparse.Namespace) -> str | None:
    """The published model that a command names, or None for runs. Raises ConfigError where its arguments are
    of the one and its name of the other."""
    names = [args.run] if isinstance(args.run, str) else args.run
    if clips := [name for name in names if is_clip(name)]:
        raise ConfigError(f"{clips[0]} is a CLIP, which `dtem evaluate {clips[0]} --zero-shot SHARDS` scores")
    named = [name for name in names if is_published(name)]
    if not named:
        refuse_of_published(args)
        return None
    if len(names) > 1:
        raise ConfigError(f"give {named[0]} alone, without other models or runs")
    if "data" in args and args.data is None:
        raise ConfigError(f"{named[0]} has no data of its own; give --data, a folder of pictures or shards")
    if args.cfg_options or args.checkpoint != "best":
        raise ConfigError("--set and --checkpoint go with a run, not with a published model")
    return named[0]


def refuse_of_published(args: argparse.Namespace) -> None:
    """Raises ConfigError for an argument that says nothing of a run."""
    if given := [name for name, usual in GIVEN.items() if getattr(args, name, usual) != usual]:
        flag = f"--{given[0].replace('_', '-')}"
        raise ConfigError(f"{flag} goes with a published model, such as timm:NAME, not with a run")


def has_labels(source: str, name: str, weights: str | None = None) -> bool:
    """Whether a source has labels for a published model: shards whose samples have a class, or class folders
    that are called as its classes, or are as many where nobody knows how these are called. Raises as
    `find_pictures`."""
    found = find_pictures(source)
    if isinstance(found, ShardPictures):
        return "cls" in found.members
    tree = found_in(source) if name.startswith(TIMM) else None
    return tree is not None and names_classes_of(name, weights, loose_manifest(tree).classes)


def folder_for(name: str, what: str) -> Path:
    """Where results on a published model are written."""
    return Path("published") / plain_name(name) / what


def plain_name(name: str) -> str:
    """A name of a model as one of a folder."""
    last = name.rstrip("/").rpartition("/")[2].rpartition(":")[2]
    return "".join(char if char.isalnum() or char in "-_" else "_" for char in last) or "model"


def labelled_run(args: argparse.Namespace, name: str) -> PublishedRun:
    """The published classifier as a run on the command's data, see `published_run`."""
    return published_run(
        name,
        args.data,
        split=args.split,
        adapter=None if args.adapter is None else load_adapter(args.adapter),
        weights=args.weights,
        pretrained=not args.no_pretrained,
        img_size=args.img_size,
    )


def opened(args: argparse.Namespace, name: str) -> tuple[Published, Adapter | None]:
    """The published model of a command's arguments, and its adapter, if there is one."""
    published = open_published(
        name, weights=args.weights, pretrained=not args.no_pretrained, img_size=args.img_size
    )
    return published, None if args.adapter is None else load_adapter(args.adapter)
