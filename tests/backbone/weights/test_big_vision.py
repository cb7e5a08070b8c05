"""Files of JAX projects: a merging backbone reads from them what timm's own reader does."""

import numpy as np
import pytest
import timm
import torch
from tiny import SEED, generator

from pipeline import build_backbone
from pipeline.backbone.weights.files import read_state_dict
from pipeline.backbone.weights.load import load_weights
from pipeline.errors import CheckpointError
from pipeline.model import MultiTaskModel
from pipeline.objectives import OBJECTIVES
from tasks.classification import ClassificationTask

IMG, WIDTH, HEADS, DEPTH = 32, 32, 2, 2
SIZES = dict(embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, patch_size=8, mlp_ratio=2)
VIT, SIGLIP = "vit_tiny_patch16_224", "vit_base_patch16_siglip_224"


def attention(rng, where):
    own = (WIDTH, HEADS, WIDTH // HEADS), (HEADS, WIDTH // HEADS)
    shapes = dict.fromkeys(("query", "key", "value"), own)
    shapes["out"] = ((HEADS, WIDTH // HEADS, WIDTH), (WIDTH,))
    return {
        f"{where}/{part}/{kind}": rng.normal(0, 0.2, shape)
        for part, both in shapes.items()
        for kind, shape in zip(("kernel", "bias"), both, strict=True)
    }


def mlp(rng, where):
    return {
        f"{where}/Dense_0/kernel": rng.normal(0, 0.2, (WIDTH, 2 * WIDTH)),
        f"{where}/Dense_0/bias": rng.normal(0, 0.2, 2 * WIDTH),
        f"{where}/Dense_1/kernel": rng.normal(0, 0.2, (2 * WIDTH, WIDTH)),
        f"{where}/Dense_1/bias": rng.normal(0, 0.2, WIDTH),
    }


def norm(rng, where):
    return {f"{where}/{kind}": rng.normal(0, 0.2, WIDTH) for kind in ("scale", "bias")}


def block(rng, where, old):
    """old: the numbers of parts are vision_transformer's, else big_vision's."""
    return {
        **norm(rng, f"{where}/LayerNorm_0"),
        **attention(rng, f"{where}/MultiHeadDotProductAttention_{1 if old else 0}"),
        **norm(rng, f"{where}/LayerNorm_{2 if old else 1}"),
        **mlp(rng, f"{where}/MlpBlock_{3 if old else 0}"),
    }


def arrays(kind):
    """Arrays of a model as its project names them, with numbers that are drawn."""
    rng, old, siglip = np.random.default_rng(SEED), kind == "augreg", kind.startswith("siglip")
    positions = "Transformer/posembed_input/pos_embedding" if old else "pos_embedding"
    found = {
        "embedding/kernel": rng.normal(0, 0.2, (8, 8, 3, WIDTH)),
        "embedding/bias": rng.normal(0, 0.2, WIDTH),
        positions: rng.normal(0, 0.2, (1, 16 if siglip else 17, WIDTH)),
        **norm(rng, "Transformer/encoder_norm"),
    }
    if siglip:
        found["MAPHead_0/probe"] = rng.normal(0, 0.2, (1, 1, WIDTH))
        found |= attention(rng, "MAPHead_0/MultiHeadDotProductAttention_0")
        found |= norm(rng, "MAPHead_0/LayerNorm_0") | mlp(rng, "MAPHead_0/MlpBlock_0")
    else:
        found["cls"] = rng.normal(0, 0.2, (1, 1, WIDTH))
        found |= {"head/kernel": rng.normal(0, 0.2, (WIDTH, 5)), "head/bias": rng.normal(0, 0.2, 5)}
    blocks = [block(rng, "Transformer/encoderblock", old) for _ in range(DEPTH)]
    if kind.endswith("stacked"):
        found |= {name: np.stack([own[name] for own in blocks]) for name in blocks[0]}
    for number, own in enumerate(() if kind.endswith("stacked") else blocks):
        found |= {name.replace("block/", f"block_{number}/"): value for name, value in own.items()}
    prefix = {"augreg": "", "vit": "params/"}.get(kind, "params/img/")
    return {prefix + name: value.astype(np.float32) for name, value in found.items()}


def pictures():
    return torch.randn(2, 3, IMG, IMG, generator=generator(2))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["augreg", "vit", "vit stacked", "siglip", "siglip stacked"])
def test_a_file_gives_what_timm_reads_from_it(kind, tmp_path):
    np.savez(path := tmp_path / "model.npz", **arrays(kind), **{"params/txt/x": np.zeros(3)})
    name, classes = (SIGLIP, 0) if kind.startswith("siglip") else (VIT, 5)
    theirs = timm.create_model(name, img_size=IMG, num_classes=classes, **SIZES).eval()
    theirs.load_pretrained(path)
    ours = build_backbone(name, img_size=IMG, timm_options=SIZES)
    task = ClassificationTask(ours, num_classes=classes or WIDTH)
    model = MultiTaskModel(ours, {"animals": task}, OBJECTIVES.build("supervised")).eval()
    report = load_weights(model, read_state_dict(path))
    assert report.left == ("params/txt/x",)
    if not classes:
        assert set(report.missing) == {"tasks.animals.head.weight", "tasks.animals.head.bias"}
        task.head.weight.copy_(torch.eye(WIDTH))
        task.head.bias.zero_()
    else:
        assert not report.missing
    found = task.logits(ours(pictures(), reduction=0))
    torch.testing.assert_close(found, theirs(pictures()), atol=2e-5, rtol=1e-4)


def test_arrays_of_another_width_are_refused(tmp_path):
    np.savez(path := tmp_path / "model.npz", **arrays("augreg"))
    ours = build_backbone(VIT, img_size=IMG, timm_options=SIZES | dict(embed_dim=64))
    with pytest.raises(CheckpointError, match="another architecture.*embed_dim=32, patch_size=8, depth=2"):
        load_weights(ours, read_state_dict(path))


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_objects_in_a_file_are_not_read(tmp_path):
    np.savez(path := tmp_path / "model.npz", x=np.array([Hostile(tmp_path / "it ran")], dtype=object))
    with pytest.raises(CheckpointError, match="model.npz cannot be read as arrays of numbers"):
        read_state_dict(path)
    assert not (tmp_path / "it ran").exists()


def test_an_array_that_unpacks_to_far_more_is_refused(tmp_path):
    np.savez_compressed(path := tmp_path / "model.npz", x=np.zeros(1 << 20))
    with pytest.raises(CheckpointError, match="'x.npy' unpacks to 8388736 bytes"):
        read_state_dict(path)


def test_a_file_that_is_cut_is_refused(tmp_path):
    np.savez(path := tmp_path / "model.npz", **arrays("augreg"))
    content = path.read_bytes()
    for end in (0, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        with pytest.raises(CheckpointError, match="model.npz"):
            read_state_dict(path)
