"""`dtem teach`: the embeddings alone learn, from pictures alone; what is written is what was taught."""

import io
import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from forks import Fork
from PIL import Image
from ranks import together
from safetensors.torch import save_file
from shardkit import image, samples, write_tar

import dtem as public
from launch.measure.planning import Aims
from launch.published.agreement import agreement
from launch.published.batches import held_out_batches
from launch.published.merged import counted_for, merged_model
from launch.published.pictures import divided, find_pictures
from launch.published.signal import signal_of
from launch.teach.lesson import Order
from launch.teach.loop import Teaching, merge_loss, teach
from launch.teach.run import teach_published
from pipeline.backbone.macs import counted_model
from pipeline.backbone.published import open_published, spelled
from pipeline.config.schema import OptimConfig
from pipeline.errors import ConfigError, SampleError
from pipeline.interfaces import Batch
from pipeline.objectives.merge_cost import MergeCost
from pipeline.objectives.signal import Signal

CPU = torch.device("cpu")
SIZE = 64


def drawn_model(seed=0):
    """A tiny model of timm's with random weights everywhere, also in what starts at zero or one."""
    torch.manual_seed(seed)
    model = timm.create_model("test_vit", img_size=SIZE, num_classes=10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(drawn_model().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """40 pictures in two folders, smooth ones, and a file that is none."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "more").mkdir()
    for number in range(40):
        with Image.open(io.BytesIO(image(number, (6, 6)))) as small:
            folder = root / "more" if number % 3 else root
            small.resize((90, 72), Image.Resampling.BICUBIC).save(folder / f"{number:03d}.png")
    (root / "more" / "broken.jpg").write_bytes(b"no picture")
    return root


def opened(weights):
    return open_published("timm:test_vit", weights=str(weights), img_size=SIZE)


def order(pictures, out, **changes):
    how = Teaching(steps=12, optim=OptimConfig(lr=1e-2, warmup_steps=2), reduction=2, pairs="first", seed=0)
    made = Order(
        data=str(pictures),
        out=out,
        how=how,
        policy="dtem",
        signal=None,
        macs=[0.7],
        batch_size=8,
        workers=0,
        device=CPU,
        precision="fp32",
        license=None,
    )
    return replace(made, **changes)


@pytest.fixture(scope="module")
def taught(weights, pictures, tmp_path_factory):
    """Folder of an adapter; the model that it was taught on, and its tensors before."""
    folder = tmp_path_factory.mktemp("taught") / "adapter"
    published = opened(weights)
    before = {key: tensor.clone() for key, tensor in published.model.state_dict().items()}
    assert teach_published(order(pictures, folder), find_pictures(str(pictures)), published)
    return folder, published, before


def scenes(count, seed):
    """Smooth images with grain [count, 3, SIZE, SIZE], normalised."""
    draw = torch.Generator().manual_seed(seed)
    colours = torch.rand(count, 3, 4, 4, generator=draw)
    smooth = torch.nn.functional.interpolate(colours, size=(SIZE, SIZE), mode="bicubic")
    return 2 * smooth + 0.6 * torch.rand(count, 3, SIZE, SIZE, generator=draw) - 1.3


def test_teaching_lowers_the_price_of_merges_on_other_pictures(weights):
    """By the same drawn blocks, reductions and outcomes before and after."""
    published, said = opened(weights), Signal("logits")
    model, untrained = (merged_model(published.model, "dtem", 2, seed=0) for _ in range(2))
    counted = counted_model(model, torch.zeros(1, 3, SIZE, SIZE))
    how = Teaching(steps=40, optim=OptimConfig(lr=1e-2, warmup_steps=4), reduction=2, pairs="first", seed=0)
    batches = (Batch("pictures", scenes(12, seed), None) for seed in range(1000))
    done = teach(model, said, batches, how, counted, device=CPU, precision="fp32", stopping=lambda: False)
    assert done == how.steps
    held_out = scenes(32, seed=99999)

    def price(own):
        total = 0.0
        for step in range(12):
            torch.manual_seed(step)
            total += merge_loss(own, said, held_out, how, counted, MergeCost(), step).item()
        return total / 12

    assert price(model) < 0.97 * price(untrained)


def test_the_model_itself_stays_as_it_is_to_the_bit(taught):
    _, published, before = taught
    after = published.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_the_curve_is_that_of_the_adapter_in_the_users_own_model(taught, pictures):
    """The lines of a user: the model, patch, and the scores that the card promises at its reduction."""
    folder, published, _ = taught
    config = json.loads((folder / "adapter_config.json").read_text())
    (curve,) = config["curves"]
    whole, point = curve["points"]
    assert whole["scores"] == {"none": 1.0} and whole["macs"] == 1.0
    assert set(point["scores"]) == {"random", "tome", "dtem_untrained", "dtem"}
    assert 0.5 < point["macs"] <= 0.7
    own = drawn_model()
    model = public.patch(drawn_model(), "dtem", point["reduction"], adapter=folder)
    _, numbers = divided(41, (SIZE, SIZE))
    batches = held_out_batches(
        find_pictures(str(pictures)), numbers, published.size, published.pixels, batch_size=8, workers=0
    )
    same, divergence = [], []
    with torch.no_grad():
        for batch in batches:
            images = batch.to("cpu").images
            merged, whole = model(images).log_softmax(-1), own(images).log_softmax(-1)
            same += (merged.argmax(-1) == whole.argmax(-1)).tolist()
            divergence += (whole.exp() * (whole - merged)).sum(-1).tolist()
    assert curve["samples"] == len(same) >= 20
    (swept,) = json.loads((folder / "curve" / "sweep.json").read_text())
    scores = swept["points"][-1]["scores"]
    assert scores["agreement"] == [point["scores"]["dtem"]] == pytest.approx([sum(same) / len(same)])
    assert scores["divergence"] == pytest.approx([sum(divergence) / len(same)], rel=1e-3)


def test_what_was_taught_is_said(taught, pictures):
    folder, published, _ = taught
    config = json.loads((folder / "adapter_config.json").read_text())
    recipe = config["recipe"]
    assert recipe["steps"] == 12 and recipe["objective"] == "merge_cost" and recipe["seed"] == 0
    assert recipe["options"] == {"pairs": "first", "signal": "logits"}
    assert recipe["data_digest"] == find_pictures(str(pictures)).digest
    assert config["merging"]["reduction"] == 2
    assert tuple(config["pixels"]["mean"]) == published.pixels.mean == (0.5, 0.5, 0.5)
    assert all((folder / "curve" / name).is_file() for name in ("sweep.json", "sweep_agreement.png"))


@pytest.mark.own_rounding
def test_the_same_seed_teaches_the_same(taught, weights, pictures, tmp_path):
    folder = taught[0]
    again = order(pictures, tmp_path / "again", macs=[])
    assert teach_published(again, find_pictures(str(pictures)), opened(weights))
    first, second = (public.load_adapter(place).tensors for place in (folder, again.out))
    assert all(torch.equal(first[key], second[key]) for key in first)


def command(*more):
    return ["teach", *map(str, more)]


def test_a_signal_to_end_writes_what_there_is(weights, pictures, tmp_path):
    argv = command("timm:test_vit", "--weights", weights, "--data", pictures, "--img-size", SIZE)
    argv += ["--out", str(tmp_path / "out"), "--steps", "1000000", "--batch-size", "4", "--workers", "1"]
    process = Fork("-m", "dtem", *argv, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    try:
        process.until("in all")  # the estimate, after the first steps
        process.send_signal(signal.SIGTERM)
        code = process.wait()
    finally:
        process.kill()
    assert code == 0, process.err
    assert "stopped as asked after" in process.out
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert 8 <= config["recipe"]["steps"] < 1000000 and "curves" not in config
    public.patch(drawn_model(), adapter=tmp_path / "out")


def test_pictures_of_a_folder_and_of_shards_are_read_alike(tmp_path):
    members = samples("a", 5)
    write_tar(tmp_path / "shards" / "x-00000.tar", members)
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    for name, data in members:
        if name.endswith(".png"):
            (tmp_path / "tree" / "deep" / name).write_bytes(data)
    shards, tree = find_pictures(str(tmp_path / "shards")), find_pictures(str(tmp_path / "tree"))
    assert len(shards) == len(tree) == 5 and shards.digest != tree.digest
    assert [shards.read(i) for i in range(5)] == [tree.read(i) for i in range(5)]


def test_only_files_are_pictures(tmp_path, caplog):
    """A pipe or a device has no end, and a link may lead nowhere: after hours of teaching is too late."""
    for name in (b"a.png", b"\xff.png"):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(image(0, (6, 6)))
    digest = find_pictures(str(tmp_path)).digest
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    found = find_pictures(str(tmp_path))
    assert len(found) == 2 and found.digest == digest
    assert "4 .jpg" in caplog.text


def test_a_place_that_cannot_be_written_is_told_before_the_steps(weights, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("launch.teach.run.teach", lambda *_, **__: pytest.fail("it teaches"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        teach_published(
            order(pictures, tmp_path / "file" / "out"), find_pictures(str(pictures)), opened(weights)
        )


def test_weights_that_say_nothing_finite_end_it(weights, pictures, tmp_path):
    published = opened(weights)
    with torch.no_grad():
        published.model.blocks[1].attn.qkv.weight[0] = float("nan")
    with pytest.raises(ConfigError, match="no step has a finite loss.*logits"):
        teach_published(order(pictures, tmp_path / "out"), find_pictures(str(pictures)), published)
    model = merged_model(published.model, "none", 0, seed=0)
    batches = (Batch("pictures", scenes(2, seed), None) for seed in range(2))
    with pytest.raises(ConfigError, match="logits of x are not finite"):
        agreement(
            {"none": [model]},
            Signal("logits"),
            batches,
            Aims([]),
            name="x",
            split="",
            device=CPU,
            precision="fp32",
        )


def test_all_processes_end_where_the_first_has_no_picture(weights, monkeypatch):
    """It alone measures speed."""
    model, own = merged_model(opened(weights).model, "none", 0, seed=0), threading.local()
    monkeypatch.setattr("launch.published.agreement.Processes", lambda _: own.ranks)
    how = dict(name="x", split="", device=CPU, precision="fp32")

    def measured(rank, ranks):
        own.ranks = ranks
        batches = [Batch("pictures", scenes(2, 0), None)] if rank else []
        with pytest.raises(ConfigError, match="of the first process can be read; start fewer processes"):
            agreement({"none": [model]}, Signal("logits"), batches, Aims([]), **how)

    assert together(2, measured) == [None, None]


@pytest.mark.parametrize("side", [7, 65])
def test_images_that_the_patches_do_not_divide_are_refused(weights, side):
    with pytest.raises(ConfigError, match=f"images of {side}x{side} pixels do not divide"):
        open_published("timm:test_vit", weights=str(weights), img_size=side)


def test_a_model_that_wants_more_than_images_of_its_size_is_refused(weights):
    model = merged_model(opened(weights).model, "dtem", 2, seed=0)
    with pytest.raises(ConfigError, match="does not take images of 72x80 pixels"):
        counted_for(model, torch.zeros(1, 3, 72, 80))


def test_several_processes_are_refused(monkeypatch, pictures, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        order(pictures, tmp_path / "out")


@pytest.mark.parametrize("count", [2, 40, 127, 128, 1280, 5000, 10**6])
def test_held_out_pictures_are_every_twentieth_and_64_where_there_are_as_many(count):
    learned, held_out = divided(count, (SIZE, SIZE))
    assert sorted(learned + held_out) == list(range(count)) and learned and held_out
    assert len(held_out) >= min(64, count // 2)
    assert len(held_out) * 3 * SIZE * SIZE <= 2**29 + 3 * SIZE * SIZE
    if count == 5000:
        assert len(held_out) == 250


def test_pictures_that_are_all_bad_end_it(weights, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(b"no picture")
    with pytest.raises(SampleError, match="in a row"):
        teach_published(order(folder, tmp_path / "out"), find_pictures(str(folder)), opened(weights))
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "changes, said",
    [
        (["timm:test_vitt"], "test_vit"),
        (["timm:resnet18"], "cannot merge"),
        (["timm:test_vit"], "--weights"),  # no network
        (["timm:test_vit", "--no-pretrained", "--data", "{empty}"], "holds no pictures"),
        (["timm:test_vit", "--no-pretrained", "--data", "{missing}"], "cannot list"),
        (["timm:test_vit", "--no-pretrained", "--out", "{full}"], "holds no adapter"),
        (["timm:test_vit", "--no-pretrained", "--policy", "tome"], "learns nothing"),
        (["timm:test_vit", "--no-pretrained", "--steps", "0"], "--steps is 0"),
        (["timm:test_vit", "--no-pretrained", "--device", "tpu"], "--device"),
        (["timm:test_vit", "--weights", "{missing}.pth"], "no checkpoint file"),
        (["{empty}"], "no config.json"),
    ],
)
def test_a_bad_order_says_the_way_out(dtem, changes, said, pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    places = {name: tmp_path / name for name in ("empty", "missing", "full")}
    argv = [part.format(**places) for part in changes]
    argv += [] if "--data" in argv else ["--data", str(pictures)]
    argv += [] if "--out" in argv else ["--out", str(tmp_path / "out")]
    assert said in dtem(*command(*argv), code=2)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_timm_is_the_model_that_wrote_it(tmp_path):
    wrote = drawn_model()
    names = [f"kind {number}" for number in range(10)]
    config = dict(model_args=dict(img_size=SIZE), label_names=names)
    timm.models.save_for_hf(wrote, tmp_path, model_config=config, safe_serialization=True)
    found = open_published(str(tmp_path))
    images = scenes(2, seed=1)
    with torch.no_grad():
        assert torch.equal(found.model(images), wrote(images))
    assert found.name == spelled(str(tmp_path)) == f"local-dir:{tmp_path}"
    assert found.classes == tuple(names) and found.size == (SIZE, SIZE)
    assert found.pixels.mean == (0.5, 0.5, 0.5) and signal_of(found).kind == "logits"


def test_explicit_normalisation_that_differs_is_warned_of(caplog):
    own = open_published("timm:test_vit", pretrained=False, mean=(0.5, 0.5, 0.5))
    assert not caplog.records and own.pixels.std == (0.5, 0.5, 0.5) and own.size == (160, 160)
    other = open_published("timm:test_vit", pretrained=False, mean=(0.1, 0.2, 0.3), img_size=SIZE)
    said = " ".join(record.getMessage() for record in caplog.records)
    assert other.pixels.mean == (0.1, 0.2, 0.3) and other.size == (SIZE, SIZE)
    assert "mean is (0.1, 0.2, 0.3)" in said and "160x160" in said


def test_a_projection_of_features_is_no_classifier():
    found = open_published("timm:vit_xsmall_patch16_clip_224.tinyclip_yfcc15m", pretrained=False)
    assert not found.classifies and signal_of(found).kind == "pooled"
    with pytest.raises(ConfigError, match="no signal 'logits'"):
        signal_of(found, "logits")
