"""The readers of strangers' data that are fuzzed, each with good inputs and a way to spoil them."""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import yaml
from fuzzing import Target
from mutations import changed_json, changed_text
from payloads.tars import member, tar_of
from PIL import Image
from safetensors.torch import save
from textpage import page_of
from tinyrun import tiny_plain
from videokit import exact, of_packets, pictures

import tasks  # noqa: F401 - fills the registry
from launch.cluster.hosts import read_hostfile
from launch.pictures.html_page import write_html
from launch.report.tables import markdown
from pipeline.backbone.adapters.collect import collect_adapter
from pipeline.backbone.adapters.folder import CONFIG, read_folder
from pipeline.backbone.adapters.folder import TENSORS as TENSORS_FILE
from pipeline.backbone.build import build_backbone
from pipeline.backbone.weights.files import read_state_dict
from pipeline.backbone.weights.preprocessing import preprocessing_of
from pipeline.config.load import from_plain, load_config, to_plain
from pipeline.config.schema import BackboneConfig
from pipeline.data.make.existing import index_shards
from pipeline.data.members.decode import DECODERS
from pipeline.data.members.video import check_video
from pipeline.data.shards.describe import CLASSES, read_names
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.index import SUFFIX, ShardIndex
from pipeline.data.shards.locations import expand
from pipeline.data.shards.tar_index import index_tar
from pipeline.run_folder import pointed
from pipeline.train.storage import read_manifest

PLAIN = to_plain(from_plain(tiny_plain(Path("data/x"), Path("runs/x"))))
FACTS = {
    "format": 1,
    "step": 4,
    "files": {"model.safetensors": {"sha256": "0" * 64, "bytes": 10}},
    "config": PLAIN,
    "digest": "0" * 64,
    "commit": None,
    "versions": {"torch": "2"},
    "world_size": 1,
    "global_batch": {"digits": 8},
    "progress": {"step": 4, "samples": {"digits": 32}, "nonfinite": 0, "best": 0.5, "evaluated": 4},
    "streams": {"digits": {"samples": 32}},
    "classes": {"digits": ["0", "1"]},
}
OPTIONS = [
    "optim.lr=1e-3",
    "tasks.digits.data.train=data/x-{000..003}.tar",
    "merging.reduction=[2,0,2]",
    "merging.policy=none",
    "tasks.digits.head={'num_classes': 5, '_delete_': True}",
    "optim.betas=(0.9,0.99)",
    "engine.deepspeed={'zero_optimization': {'stage': 1}}",
    "output='runs/x y'",
]
PYTHON = """_base_ = []
_width = 24
backbone = dict(name="vit_tiny_patch16_224", options=dict(patch_size=8, embed_dim=_width, depth=3))
_data = dict(train="data/x", val="data/x", schema="classification", batch_size=8, img_size=32)
tasks = dict(digits=dict(type="classification", head=dict(num_classes=10), data=_data))
train = dict(mode="joint", steps=6)
output = "runs/x"
"""
SIZES = {"depth": 2, "embed_dim": 12, "num_heads": 2}
MAX_INDEXED = 1 << 20
"""Bytes of the shard that an index is of."""
TENSORS = {"blocks.0.a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.float16)}


def _picture(form: str, mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 4, (12, 14, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(out, form, **options)
    return out.getvalue()


def _torch_file(**options: Any) -> bytes:
    out = io.BytesIO()
    torch.save({"state_dict": TENSORS}, out, **options)
    return out.getvalue()


def _tars() -> list[bytes]:
    members = {"cls": b"1", "png": _picture("PNG")}
    samples = [member(f"{key}.{suffix}", data) for key in "ab" for suffix, data in members.items()]
    return [tar_of(*samples), tar_of(member("dir/" + "k" * 150 + ".cls"), member("x.json", b"{}"))]


def _written(name: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    """A reader of a file of this name."""

    def call(data: bytes, folder: Path) -> object:
        (folder / name).write_bytes(data)
        return read(folder / name)

    return call


def _set(folder: Path) -> tuple[Path, list[Path]]:
    """The manifest of two shards and their indexes, which are made in the folder."""
    tars = [folder / f"train-{number}.tar" for number in range(2)]
    for path, data in zip(tars, _tars(), strict=True):
        path.write_bytes(data)
    manifest = index_shards([str(path) for path in tars], folder)
    return manifest, [path.with_name(path.name + SUFFIX) for path in tars]


def _old_index(index: ShardIndex) -> bytes:
    """The index as it was stored before indexes were binary."""
    members = [index.members(sample) for sample in range(len(index))]
    places = [[there.get(suffix, (0, -1)) for suffix in index.suffixes] for there in members]
    columns = [[[place[part] for place in row] for row in places] for part in (0, 1)]
    plain = {"keys": index.keys, "suffixes": index.suffixes, "offsets": columns[0], "sizes": columns[1]}
    return json.dumps(plain).encode()


def _read_index(data: bytes, _: Path) -> object:
    index = ShardIndex.from_bytes(data, MAX_INDEXED)
    return [(index.key(sample), index.members(sample)) for sample in range(min(len(index), 100))]


def _text(read: Callable[[str], object]) -> Callable[[bytes, Path], object]:
    return lambda data, folder: read(data.decode(errors="surrogateescape"))


def _hashed(data: bytes) -> bytes:
    """The facts of a checkpoint, whose hash is made to fit as a stranger can; other data as it is."""
    try:
        facts = json.loads(data)
        facts.pop("sha256", None)
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return json.dumps(facts | {"sha256": digest}).encode()
    except (ValueError, AttributeError, TypeError, RecursionError):
        return data


def _changed_facts(random: Random, seeds: Sequence[bytes]) -> bytes:
    return _hashed(changed_json(random, seeds))


def _in_page(folder: Path) -> Callable[[bytes, Path], object]:
    """Asserts that a text in a page or table becomes no tag, no line and no command."""

    def shown(text: str, place: Path) -> tuple[str, str]:
        return write_html(page_of(text), place / "x.html").read_text(encoding="utf-8"), markdown(
            [text], [[text]]
        )

    tags = shown("words", folder)[0].count("<")

    def check(data: bytes, place: Path) -> None:
        page, table = shown(f"x{data.decode(errors='replace')}", place)
        assert page.isprintable() and page.count("<") == tags
        assert table.replace("\n", "").isprintable() and table.count("\n") == 2

    return check


def targets(folder: Path) -> dict[str, Target]:
    """Name -> target. folder: where the good inputs are made."""
    found = [*_of_data(folder), *_of_configs(), *_of_runs(), *_of_pages(folder)]
    return {target.name: target for target in found}


def _of_data(folder: Path) -> list[Target]:
    forms = (("PNG", "RGB"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("PNG", "P"))
    images = [_picture(form, mode) for form, mode in forms] + [_picture("JPEG", progressive=True)]
    masks = [_picture("PNG", mode) for mode in ("L", "P", "1")]
    names = [b'{"classes": ["a", "b"], "mask_classes": ["c"]}', b'["a"]']
    words = [b"data/x-{000..003}.tar", b"http://host/x/{a,b}.tar", b"s3://bucket/x", b"file:///x.tar"]
    read_set = _written("manifest.json", lambda path: load_manifest(str(path.parent), checked=False))
    read_classes = _written(CLASSES, lambda path: read_names(str(path.parent)))
    manifest, indexes = _set(folder)
    stored = [path.read_bytes() for path in indexes]
    old = [_old_index(ShardIndex.from_bytes(data, MAX_INDEXED)) for data in stored]
    return [
        Target("manifest", [manifest.read_bytes()], read_set, changed_json),
        Target("index", stored, _read_index, errors=(ValueError,)),
        Target("index in JSON", old, _read_index, changed_json, errors=(ValueError,)),
        Target("tar", _tars(), _written("x.tar", index_tar), share=15),
        Target("image", images, _member("png"), share=8),
        Target("mask", masks, _member("seg.png")),
        Target(
            "video",
            [exact(pictures(3)), of_packets(2 * [_picture("JPEG", "RGB")], (16, 16), "matroska")],
            _video,
        ),
        Target("class", [b"7", b" 123\n"], _member("cls"), share=2),
        Target("captions", [b'{"captions": ["a big zero", "two"]}'], _member("json"), changed_json),
        Target("class names", names, read_classes, changed_json, share=5),
        Target("location", words, _text(expand), changed_text, share=5),
    ]


def _of_configs() -> list[Target]:
    hosts = b"# two hosts\nnode-a slots=8\nme@10.0.0.2 slots=4 port=2222\n"
    read_hosts = _written("hostfile", lambda path: read_hostfile(str(path)))
    plain, options = json.dumps(PLAIN).encode(), [option.encode() for option in OPTIONS]
    as_yaml = yaml.safe_dump(PLAIN).encode()
    return [
        Target("config in JSON", [plain], _written("x.json", load_config), changed_json),
        Target("config in YAML", [as_yaml], _written("x.yaml", load_config), changed_text, share=1),
        Target("config in Python", [PYTHON.encode()], _written("x.py", load_config), changed_text, share=1),
        Target("hostfile", [hosts], read_hosts, changed_text),
        Target("option", options, _text(lambda text: from_plain(PLAIN, [text])), changed_text),
    ]


def _of_runs() -> list[Target]:
    facts = _hashed(json.dumps(FACTS).encode())
    read_pointer = _written("best", lambda path: pointed(path.parent, "best"))
    tensors = [save(TENSORS), save(TENSORS, {"grid": "2x3"})]
    old_and_new = [_torch_file(), _torch_file(_use_new_zipfile_serialization=False)]
    read_facts = _written("manifest.json", lambda path: read_manifest(path.parent))
    return [
        Target("checkpoint manifest", [facts], read_facts, _changed_facts),
        Target("pointer", [b"step_00000004"], read_pointer, share=3),
        Target("safetensors", tensors, _written("x.safetensors", read_state_dict)),
        Target("weights of torch", old_and_new, _written("x.pth", read_state_dict)),
        *_of_adapters(),
        *_of_others_weights(),
    ]


def _of_others_weights() -> list[Target]:
    """Files of transformers' folders, and of numpy."""
    packed = io.BytesIO()
    np.savez(packed, **{"embedding/kernel": np.zeros((2, 2), np.float32), "cls": np.ones(3, np.int32)})
    vision = {"model_type": "siglip_vision_model", "hidden_act": "gelu"}
    config = {"model_type": "siglip", "vision_config": vision}
    listed = {"metadata": {"total_size": 9}, "weight_map": {"b": "x.safetensors"}}
    pixels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "rescale_factor": 1 / 255, "resample": 3}
    crops = {"do_center_crop": True, "size": {"shortest_edge": 256}, "crop_size": {"height": 224}}

    def pixels_of(folder: Path) -> object:
        return preprocessing_of(BackboneConfig(name="vit_tiny_patch16_224", weights=str(folder)))

    def beside(name: str, tensors: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
        def call(data: bytes, folder: Path) -> object:
            (folder / tensors).write_bytes(save(TENSORS))
            (folder / name).write_bytes(data)
            return read(folder)

        return call

    def in_json(what: str, plain: object, read: Callable[[bytes, Path], object]) -> Target:
        return Target(what, [json.dumps(plain).encode()], read, changed_json)

    index, of_pixels = "model.safetensors.index.json", "preprocessor_config.json"
    return [
        in_json("config of a model", config, beside("config.json", "model.safetensors", read_state_dict)),
        in_json("list of weights", listed, beside(index, "x.safetensors", read_state_dict)),
        in_json("image processor", pixels | crops, _written(of_pixels, lambda path: pixels_of(path.parent))),
        Target("weights of numpy", [packed.getvalue()], _written("x.npz", read_state_dict)),
    ]


def _of_adapters() -> list[Target]:
    """Each file of an adapter, beside a good other one."""
    torch.manual_seed(0)
    adapter = collect_adapter(build_backbone("vit_tiny_patch16_224", policy="dtem", timm_options=SIZES))
    config, tensors = adapter.config.to_json().encode(), save(dict(adapter.tensors))

    def beside(name: str, other: str, good: bytes) -> Callable[[bytes, Path], object]:
        def read(data: bytes, folder: Path) -> object:
            (folder / other).write_bytes(good)
            (folder / name).write_bytes(data)
            return read_folder(folder)

        return read

    return [
        Target("adapter configuration", [config], beside(CONFIG, TENSORS_FILE, tensors), changed_json),
        Target("adapter tensors", [tensors], beside(TENSORS_FILE, CONFIG, config)),
    ]


def _of_pages(folder: Path) -> list[Target]:
    return [Target("text in a page", [b"a dog", b"<b>x</b>"], _in_page(folder), changed_text, share=3)]


def _video(data: bytes, _: Path) -> object:
    return check_video(data, "mkv")


def _member(suffix: str) -> Callable[[bytes, Path], object]:
    return lambda data, _: DECODERS[suffix](data)
