"""What stands in place of a run: a published model, and its data."""

import argparse

from launch.commands.values import colour


def add_published_arguments(parser: "argparse._ActionsContainer", *, normalisation: bool = True) -> None:
    """What `open_published` takes beside the name."""
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="of timm:NAME, in place of timm's: a file or folder in any keys that we read",
    )
    parser.add_argument(
        "--no-pretrained", action="store_true", help="draw the weights of timm:NAME anew, to try the way"
    )
    parser.add_argument(
        "--img-size", type=int, metavar="PX", help="pixels per side of images (default: the model's own)"
    )
    for name in ("--mean", "--std") if normalisation else ():
        parser.add_argument(
            name, type=colour, metavar="R,G,B", help="of pixels in [0, 1] (default: what the weights want)"
        )


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """What stands in place of a run: a published model, named timm:NAME, local-dir:FOLDER, hf-hub:USER/NAME
    or hf:NAME, and its data."""
    add_model_arguments(parser).add_argument(
        "--data",
        metavar="SHARDS_OR_FOLDER",
        help="shards with classes, or SRC/{train,val}/CLASS/*.jpg, or SRC/CLASS/*.jpg; for sweep and board "
        "also pictures without",
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """The same without data, for commands that bring their own images."""
    place = parser.add_argument_group("with a published model in place of RUN, such as timm:NAME")
    place.add_argument("--adapter", metavar="FOLDER", help="merge adapter, or hf-hub:USER/NAME of one")
    add_published_arguments(place, normalisation=False)
    return place


def add_signal_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--signal",
        choices=("logits", "pooled", "patches"),
        help="what of a published model merged ones are to keep (default: in sweep and board the labels, "
        "where there are any; else the first of these that it has)",
    )
