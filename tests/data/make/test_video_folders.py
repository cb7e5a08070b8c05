"""Videos in class folders, as shards and as they lie; and the embedded clips as mp4."""

import pytest
import torch

pytest.importorskip("av")
from shardkit import config, dtem, image
from videokit import exact, pictures, stored

from pipeline.config.schema import AugmentConfig
from pipeline.data.make.digits.moving import make_clip
from pipeline.data.shards.find import load_manifest
from pipeline.data.stream import build_eval_loader
from pipeline.errors import ConfigError, SampleError

PLAIN = AugmentConfig(crop_pct=1.0)


@pytest.fixture
def films(tmp_path):
    for number, name in enumerate(
        ("train/run/a.mkv", "train/walk/b.MKV", "train/walk/in/c.mkv", "val/run/d.mkv")
    ):
        path = tmp_path / "films" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(exact(pictures(6, seed=number)))
    (tmp_path / "films/val/walk").mkdir()
    return tmp_path / "films"


def clips_of(where, split="train"):
    options = dict(
        schema="video_classification", frames=3, img_size=(16, 24), augment=PLAIN, eval_batch_size=9
    )
    (batch,) = build_eval_loader("t", config(str(where), **options), rank=0, world_size=1, split=split)
    return dict(zip(batch.keys, zip(batch.images, batch.targets.labels.tolist(), strict=True), strict=True))


def test_class_folders_of_videos_become_shards_and_are_read_as_they_lie(films, tmp_path, capsys):
    (films / "train/notes.txt").write_text("x")
    assert dtem("make", "video_folders", films, tmp_path / "out", "--workers", 1) == 0
    assert "4 samples, 2 shards" in capsys.readouterr().out
    manifest = load_manifest(str(tmp_path / "out"))
    assert manifest.classes == ("run", "walk") and manifest.schema == ("cls", "mkv")
    made, loose = clips_of(tmp_path / "out"), clips_of(f"video_folders:{films}")
    assert list(made) == list(loose) and set(made) == {"run/a", "walk/b", "walk/in/c"}
    for key, (clip, label) in made.items():
        assert torch.equal(clip, loose[key][0]) and label == loose[key][1] == int(key.startswith("walk"))
    whole = torch.from_numpy(pictures(6, seed=0)).permute(0, 3, 1, 2)
    assert torch.equal(made["run/a"][0], whole[1::2]), "the middle of three parts of two frames"
    assert dtem("verify", tmp_path / "out", "--workers", 1) == 0
    assert dtem("cat", tmp_path / "out", "run/a") == 0
    assert "6 frames of 24x16 pixels" in capsys.readouterr().out


def test_a_file_that_is_no_video_is_refused_with_its_path_or_left_out(films, tmp_path, caplog):
    (films / "train/run/broken.mkv").write_bytes(b"none")
    with pytest.raises(SampleError, match="broken.mkv: mkv does not decode.*replace or remove"):
        dtem("make", "video_folders", films, tmp_path / "out", "--workers", 1)
    assert dtem("make", "video_folders", films, tmp_path / "other", "--workers", 1, "--skip-bad") == 0
    assert "broken.mkv" in caplog.text and len(clips_of(tmp_path / "other")) == 3


def test_verify_finds_a_video_that_does_not_decode_to_its_end(films, tmp_path, capsys):
    whole = stored(pictures(30, (64, 64)), "mov", "mpeg4", "yuv420p")
    half = len(whole) // 2
    (films / "train/run/a.mkv").unlink()
    (films / "train/run/a.mov").write_bytes(whole[:half] + bytes(200) + whole[half + 200 :])
    dtem("make", "video_folders", films, tmp_path / "out", "--workers", 1)
    assert dtem("verify", tmp_path / "out", "--workers", 1) == 1
    assert "sample 'run/a', mov: mov: frame " in capsys.readouterr().out


def test_folders_of_pictures_are_told_what_is_looked_for(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.png").write_bytes(image())
    with pytest.raises(ConfigError, match="holds no videos .*mp4.* in its class folders"):
        dtem("make", "video_folders", tmp_path, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"give SRC with SRC/train/CLASS/\*.mp4"):
        dtem("make", "video_folders", tmp_path / "a", tmp_path / "out")


def test_moving_digits_as_mp4_are_near_to_what_was_drawn(tmp_path):
    small = "--train 2 --val 2 --size 32 --frames 6 --form mp4 --workers 1".split()
    assert dtem("make", "moving_digits", tmp_path / "set", *small) == 0
    options = dict(schema="video_classification", frames=6, img_size=32, augment=PLAIN)
    (batch,) = build_eval_loader("t", config(str(tmp_path / "set"), **options), rank=0, world_size=1)
    for number, clip in enumerate(batch.images):
        drawn = torch.from_numpy(make_clip(0, "val", number, 32, 6).frames).permute(0, 3, 1, 2)
        assert (clip.float() - drawn).abs().mean() < 8
