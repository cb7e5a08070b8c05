"""Published models without a run: `dtem evaluate` and `dtem sweep` score them, on labels or on agreement."""

import json

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from shardkit import samples, write_tar

import dtem as public
from launch.published.batches import held_out_batches
from launch.published.labelled import _named
from launch.published.merged import merged_model
from launch.published.pictures import find_pictures
from launch.published.signal import signal_of
from launch.published.sources import has_labels
from pipeline.backbone.published import open_published

SIZE, COUNT = 64, 30


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=SIZE, num_classes=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


@pytest.fixture(scope="module")
def named(model, tmp_path_factory):
    """Arguments that name the model."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(model.state_dict(), path)
    return ["timm:test_vit", "--weights", path, "--img-size", SIZE]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_tar(folder / "val-00000.tar", samples("v", COUNT))
    return folder


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    torch.manual_seed(1)
    patched = public.patch(timm.create_model("test_vit", img_size=SIZE, num_classes=5).eval(), "dtem", 2)
    patched.load_state_dict(model.state_dict(), strict=False)
    return public.save_adapter(patched, folder), patched


def share_right(own, shards):
    """Share of the shards' samples that a model of timm's classifies rightly, by its own forward."""
    pixels = open_published("timm:test_vit", pretrained=False).pixels
    pictures = find_pictures(str(shards))
    numbers = range(len(pictures))
    batches = held_out_batches(pictures, numbers, (SIZE, SIZE), pixels, batch_size=10, workers=0)
    with torch.no_grad():
        found = torch.cat([own(batch.to("cpu").images).argmax(-1) for batch in batches])
    return (found == torch.arange(COUNT) % 3).double().mean().item()


def test_evaluate_scores_a_published_model_as_its_own_forward_does(
    dtem, named, shards, model, adapter, tmp_path
):
    place, patched = adapter
    dtem("evaluate", *named, "--data", shards, "--out", tmp_path / "plain.json")
    dtem("evaluate", *named, "--data", shards, "--adapter", place, "--out", tmp_path / "merged.json")
    plain, merged = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("plain", "merged"))
    (scores,), (of_merged,) = plain["scores"].values(), merged["scores"].values()
    assert plain["policy"] == "none" and scores["samples"] == COUNT
    assert merged["policy"] == "dtem" and set(*merged["schedule"].values()) == {2}
    # one near tie may turn
    assert scores["top1"] == pytest.approx(share_right(model, shards), abs=1.01 / COUNT)
    assert of_merged["top1"] == pytest.approx(share_right(patched, shards), abs=1.01 / COUNT)


def test_sweep_scores_a_published_model_on_labels(dtem, named, shards, adapter, tmp_path):
    out = ["--macs", "0.7", "--rounds", "0", "--out", tmp_path]
    dtem("sweep", *named, "--data", shards, "--adapter", adapter[0], *out)
    (found,) = json.loads((tmp_path / "sweep.json").read_text())
    assert found["metric"] == "top1" and found["conditions"]["runs"] == ["timm:test_vit"]
    assert [row["policy"] for row in found["points"]] == ["none", "random", "tome", "dtem_untrained", "dtem"]


def test_a_board_without_labels_names_what_it_lacks(dtem, named, shards, adapter, tmp_path):
    bare = tmp_path / "pictures"
    write_tar(bare / "x.tar", [(name, data) for name, data in samples("v", 8) if name.endswith("png")])
    words = ["board", *named, "--data", bare, "--policies", "random,tome,dtem", "--seeds", "0,1"]
    dtem(*words, "--merged", "0.5", "--rounds", "1", "--out", tmp_path / "out")
    (found,) = json.loads((tmp_path / "out" / "board.json").read_text())["tasks"]
    rows = {row["policy"]: row for row in found["points"]}
    assert list(rows) == ["none", "random", "tome"] and len(rows["random"]["scores"]["divergence"]) == 2
    assert rows["tome"]["schedule"] == rows["random"]["schedule"] and rows["tome"]["peak_mib"] > 0
    assert sum(rows["tome"]["schedule"]) == (SIZE // 16) ** 2 / 2 and found["conditions"]["seeds"] == [0, 1]
    (lacking,) = found["left_out"]
    assert lacking["policy"] == "dtem" and "give --adapter" in lacking["reason"]
    dtem(*words, "--adapter", adapter[0], "--macs", "0.7", "--rounds", "0", "--out", tmp_path / "out")
    (found,) = json.loads((tmp_path / "out" / "board.json").read_text())["tasks"]
    assert [row["policy"] for row in found["points"]][-1] == "dtem" and not found["left_out"]
    assert "leave --task and --split out" in dtem(*words, "--task", "x", "--split", "test", code=2)
    assert "rounds is -2" in dtem(*words, "--rounds", "-2", code=2)


def test_a_signal_that_is_asked_for_is_measured_beside_labels_too(dtem, named, shards, tmp_path):
    out = ["--policy", "tome", "--macs", "0.7", "--rounds", "0", "--out", tmp_path]
    dtem("sweep", *named, "--data", shards, "--signal", "pooled", *out)
    (found,) = json.loads((tmp_path / "sweep.json").read_text())
    assert found["metric"] == "cosine" and found["conditions"]["signal"] == "pooled"


def test_sweep_without_labels_measures_agreement(dtem, named, shards, tmp_path):
    bare = tmp_path / "pictures"
    write_tar(bare / "x.tar", [(name, data) for name, data in samples("v", 8) if name.endswith("png")])
    argv = ["sweep", *named, "--data", bare, "--macs"]
    dtem(*argv, "0.6", "--rounds", "0", "--signal", "patches", "--out", tmp_path / "patches")
    (patches,) = json.loads((tmp_path / "patches" / "sweep.json").read_text())
    assert patches["metric"] == "cosine" and patches["conditions"]["signal"] == "patches"
    dtem(*argv, "0.8,0.6", "--rounds", "1", "--out", tmp_path / "out")
    (found,) = json.loads((tmp_path / "out" / "sweep.json").read_text())
    rows = found["points"]
    assert found["metric"] == "agreement" and found["conditions"]["samples"] == 8
    assert rows[0]["scores"] == {"agreement": [1.0], "divergence": [0.0]}
    assert {row["policy"] for row in rows} == {"none", "random", "tome", "dtem_untrained"}
    assert all(row["macs_ratio"] <= row["target"] for row in rows[1:]) and len(rows[0]["images_per_s"]) == 1


@pytest.mark.parametrize(
    "changes, said",
    [
        (["timm:test_vit"], "give --data"),
        (["timm:test_vit", "--data", "{shards}", "--checkpoint", "last"], "--checkpoint"),
        (["runs/x", "--data", "{shards}"], "not with a run"),
        (["hf:user/name", "--data", "{shards}"], "give timm:NAME"),
        (["timm:vit_xsmall_patch16_clip_224", "--data", "{pictures}"], "has no labels"),
    ],
)
def test_a_bad_order_says_the_way_out(dtem, changes, said, shards, tmp_path):
    pictures = tmp_path / "pictures"
    write_tar(pictures / "x.tar", [(name, data) for name, data in samples("v", 2) if name.endswith("png")])
    argv = [part.format(shards=shards, pictures=pictures) for part in changes]
    assert said in dtem("evaluate", *argv, code=2)


def test_labels_follow_the_names_of_the_model_where_the_shards_add_words():
    assert _named(("n1", "n2", "n3"), ("n2 hen", "n1 cock")) == ["n1 cock", "n2 hen", "n3"]


SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
TRANSFORMERS = {
    "logits": (transformers.Dinov2ForImageClassification, transformers.Dinov2Config(**SIZES, num_labels=5)),
    "pooled": (transformers.CLIPVisionModel, transformers.CLIPVisionConfig(**SIZES, intermediate_size=64)),
}


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_the_signal_of_transformers_is_what_the_patched_model_gives(kind, tmp_path):
    build, config = TRANSFORMERS[kind]
    torch.manual_seed(0)
    build(config).save_pretrained(tmp_path)
    found = open_published(str(tmp_path))
    assert found.name == f"hf:{tmp_path}" and found.size == (32, 32)
    said, model = signal_of(found), merged_model(found.model, "dtem", 2, seed=0)
    assert said.kind == kind
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        own = model(images)
        read = said.read(model, model.encode(images))
    torch.testing.assert_close(read, own.logits if kind == "logits" else own.pooler_output)


def class_folders(shards, root, names):
    """The samples of the shards as an ImageFolder tree, whose class folders have these names."""
    from pipeline.data.shards.cache import default_cache
    from pipeline.data.shards.find import load_manifest
    from pipeline.data.shards.reader import SampleReader

    reader = SampleReader(load_manifest(str(shards)), 1, default_cache(), 1.0)
    for number in range(COUNT):
        found = reader.read(0, number)
        folder = root / names[int(found["cls"])]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{reader.key(0, number)}.png").write_bytes(found["png"])
    return root


@pytest.mark.parametrize("split", ["", "validation"])
def test_a_tree_of_class_folders_is_scored_as_its_shards_are(dtem, named, shards, tmp_path, split):
    tree = class_folders(shards, tmp_path / "tree" / split, [str(number) for number in range(5)])
    for folder in ("3", "4"):
        (tree / folder).mkdir()
        (tree / folder / "one.png").write_bytes(next(tree.rglob("*.png")).read_bytes())
    dtem("shards", "make", "imagefolder", tree, tmp_path / "made", "--workers", 1)
    for name, source in (
        ("tree", tmp_path / "tree"),
        ("kind", f"imagefolder:{tree}"),
        ("made", tmp_path / "made"),
    ):
        more = ["--split", "train"] if name == "made" else []
        dtem("evaluate", *named, "--data", source, *more, "--out", tmp_path / f"{name}.json")
    scores = [
        json.loads((tmp_path / f"{name}.json").read_text())["scores"] for name in ("tree", "kind", "made")
    ]
    assert scores[0] == scores[1] == scores[2] and scores[0]["classification"]["samples"] == COUNT + 2


def test_class_folders_are_labels_where_they_are_the_classes_of_the_model(named, shards, tmp_path):
    weights = str(named[2])
    five = class_folders(shards, tmp_path / "five", ["a", "b", "c"])
    assert not has_labels(str(five), "timm:test_vit", weights), (
        "three folders, and five classes without names"
    )
    assert has_labels(f"imagefolder:{five}", "timm:test_vit", weights), "where it is said, they are labels"
    synsets = class_folders(shards, tmp_path / "synsets", ["n01440764", "n01443537", "n02119789"])
    assert has_labels(str(synsets), "timm:test_vit") and not has_labels(str(five), "timm:test_vit")
    assert not has_labels(str(synsets), "local-dir:somewhere")
