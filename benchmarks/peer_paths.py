"""`--peer NAME=PATH`: where the code of others is that runs beside ours."""

import argparse
from pathlib import Path

PEERS = {
    "dtem": "the authors' file with patch_deit",
    "tome": "the folder that holds the authors' package tome",
    "mctf": "the folder that holds the authors' packages models and utils",
    "opentome": "the folder that holds Westlake-AI's package opentome",
    "gtp": "the authors' folder with models_v3.py, of Ackesnal/GTP-ViT",
    "as_vit": "the authors' folder with vit.py, of Cydia2018/AS-ViT",
    "evit": "the authors' folder with evit.py, of youweiliang/evit",
    "vid_tldr": "the authors' folder with multi_modality, of mlvlab/vid-TLDR",
    "tl_align": "the authors' folder with tla.py and timm, of Euphoria16/TL-Align",
    "stvit": "the authors' folder with models, of changsn/STViT-R",
    "lemevit": "the authors' file models/lemevit.py, of ViTAE-Transformer/LeMeViT",
}


def add_peers(parser: argparse.ArgumentParser) -> None:
    told = "; ".join(f"{name}: {where}" for name, where in PEERS.items())
    parser.add_argument("--peer", action=_Peer, default={}, metavar="NAME=PATH", help=told)


class _Peer(argparse.Action):
    """As often as there are peers; maps a name to a path."""

    def __call__(self, parser, namespace, values, option_string=None):  # noqa: ANN001
        name, _, path = str(values).partition("=")
        if name not in PEERS:
            parser.error(f"--peer {values}: peers are {', '.join(PEERS)}")
        if not Path(path).exists():
            parser.error(f"--peer {values}: there is no '{path}'")
        setattr(namespace, self.dest, getattr(namespace, self.dest) | {name: path})
