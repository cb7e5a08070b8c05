"""Stored videos: their frames by number, and files that are none, or another one than they say."""

import struct
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.members import video
from pipeline.data.members.clips import Pictures, clip_in, frame_number, kind_of, of_clips
from pipeline.data.members.video import Video, check_video, encode_video
from pipeline.errors import SampleError

pytest.importorskip("av")
from videokit import RATE, exact, of_packets, patched, pictures, stored, with_cover

FRAMES = pictures(9)
STORED = {
    "mp4": ("mp4", "libx264", "yuv444p"),
    "mov": ("mov", "mpeg4", "yuv420p"),
    "webm": ("webm", "libvpx-vp9", "yuv444p"),
    "mkv": ("matroska", "ffv1", "bgr0"),
    "avi": ("avi", "mjpeg", "yuvj444p"),
}


def decoded(data: bytes, form: str, numbers) -> list[np.ndarray]:
    return [frame.permute(1, 2, 0).numpy() for frame in Video(data, form).frames(numbers)]


@pytest.mark.parametrize("form", STORED)
def test_each_container_gives_its_frames(form):
    data = stored(FRAMES, *STORED[form])
    assert str(Video(data, form)) == "9 frames of 24x16 pixels"
    found = decoded(data, form, range(9))
    assert all(frame.dtype == np.uint8 and frame.shape == (16, 24, 3) for frame in found)
    nearest = [np.abs(FRAMES.astype(int) - frame).mean((1, 2, 3)).argmin() for frame in found]
    assert nearest == list(range(9))
    check_video(data, form)


@pytest.mark.parametrize("numbers", [n for count in (1, 2) for n in combinations(range(0, 9, 2), count)])
def test_frames_by_number_are_those_of_the_whole_video(numbers):
    found = decoded(exact(FRAMES), "mkv", numbers)
    assert all(np.array_equal(frame, FRAMES[n]) for frame, n in zip(found, numbers, strict=True))


def test_no_frames_are_none():
    assert decoded(exact(FRAMES), "mkv", ()) == []


def test_behind_the_last_frame_that_decodes_it_is_repeated():
    found = decoded(exact(FRAMES), "mkv", (7, 8, 9, 10))
    assert [np.array_equal(frame, FRAMES[min(n, 8)]) for frame, n in zip(found, (7, 8, 9, 10), strict=True)]
    assert np.array_equal(found[3], FRAMES[8])


def test_an_mp4_has_its_frames_in_their_order():
    for frames in (FRAMES, FRAMES[::-1]):
        found = np.stack(decoded(encode_video(frames, 8), "mp4", range(9))).astype(int)
        assert np.abs(found - frames).mean() < 30 < np.abs(found - frames[::-1]).mean()


@pytest.mark.parametrize("form", ["mp4", "mov", "mkv", "avi", "webm"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_that_is_cut_off_is_refused_or_says_fewer_frames(form, share):
    whole = stored(FRAMES, *STORED[form])
    data = whole[: int(share * len(whole))]
    try:
        there = Video(data, form).num_frames
    except SampleError:
        return
    assert there < 9 and form in ("mkv", "webm", "avi"), "these have no table of their frames at the end"


@pytest.mark.parametrize("form", [*STORED])
@pytest.mark.parametrize("data", [b"", b"none", bytes(5000), b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0AVI LIST"])
def test_what_is_no_video_is_refused(form, data):
    with pytest.raises(SampleError, match=form):
        Video(data, form)


def test_another_container_than_the_suffix_says_is_refused():
    with pytest.raises(SampleError):
        Video(exact(FRAMES), "mp4")


@pytest.mark.parametrize("form", [*STORED])
def test_a_playlist_is_not_followed(form, tmp_path):
    """FFmpeg would open what these name, were it to guess what they are."""
    there = tmp_path / "there.mkv"
    there.write_bytes(exact(FRAMES))
    playlists = (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{there}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{there}'\n",
        f"<?xml version='1.0'?><MPD><BaseURL>{there}</BaseURL></MPD>",
    )
    for text in playlists:
        with pytest.raises(SampleError):
            Video(text.encode(), form)


def test_another_codec_is_refused_by_name():
    with pytest.raises(SampleError, match="the codec huffyuv, which is not read .*h264"):
        Video(stored(FRAMES, "avi", "huffyuv", "yuv422p"), "avi")


def test_frames_of_several_sizes_are_refused():
    small, large = (jpeg(pictures(1, size)[0]) for size in ((16, 24), (32, 24)))
    made = of_packets([small, small, large], (16, 24))
    assert len(list(Video(made, "avi").frames((0, 1)))) == 2, "nobody looks behind what is asked for"
    with pytest.raises(SampleError, match="frame 2 has 24x32 pixels and frame 0 24x16"):
        list(Video(made, "avi").frames((0, 2)))


def jpeg(picture: np.ndarray) -> bytes:
    from PIL import Image
    from shardkit import encoded

    return encoded(Image.fromarray(picture), "JPEG")


def test_too_many_frames_and_pixels_are_refused(monkeypatch):
    data = exact(FRAMES)
    monkeypatch.setattr(video, "MAX_DECODED", 3 * 16 * 24)
    assert len(list(Video(data, "mkv").frames((2,)))) == 1
    with pytest.raises(SampleError, match="pixels up to frame 3; cut it into shorter clips"):
        list(Video(data, "mkv").frames((3,)))
    monkeypatch.setattr(video, "MAX_FRAMES", 9)
    assert Video(data, "mkv").num_frames == 9
    monkeypatch.setattr(video, "MAX_FRAMES", 8)
    with pytest.raises(SampleError, match="more than 8 frames"):
        Video(data, "mkv")


def test_frames_before_the_beginning_that_a_file_sets_are_not_counted(monkeypatch):
    """As ffmpeg -c copy cuts a video: from the key frame on, with an edit list that begins later."""
    whole = stored(pictures(20), "mp4", "libx264", "yuv420p")
    place = whole.index(b"elst") + 4
    flags, count, duration, start = struct.unpack_from(">4I", whole, place)
    (scale,) = struct.unpack_from(">I", whole, whole.index(b"mdhd") + 16)
    later = patched(whole, b"elst", flags, count, duration, start + 5 * scale // RATE)
    assert (Video(whole, "mp4").num_frames, Video(later, "mp4").num_frames) == (20, 15)
    found = decoded(later, "mp4", range(15))
    assert all(map(np.array_equal, found, decoded(whole, "mp4", range(5, 20))))
    monkeypatch.setattr(video, "MAX_DECODED", 5 * 16 * 24 - 1)
    with pytest.raises(SampleError, match="mp4 hides 5 frames, which are decoded too"):
        Video(later, "mp4")


def test_a_cover_is_no_video():
    with pytest.raises(SampleError, match="mp4 holds no moving pictures"):
        Video(with_cover(jpeg(pictures(1)[0])), "mp4")


def test_one_thread_makes_pictures_of_frames(monkeypatch):
    """FFmpeg would start as many as there are cores, for each frame, in each worker."""
    there, most, made = Path("/proc/self/task"), [], video._pixels

    def pixels(frame):
        picture = made(frame)
        most.append(len(list(there.iterdir())))
        return picture

    monkeypatch.setattr(video, "_pixels", pixels)
    before = len(list(there.iterdir()))
    frames = list(Video(exact(pictures(3, (64, 64))), "mkv").frames(range(3)))
    assert len(frames) == len(most) == 3 and max(most) <= before


def test_members_of_clips_are_known_by_their_suffixes():
    assert [frame_number(name) for name in ("000.jpg", "frame_0012.png", "7.webp")] == [0, 12, 7]
    assert not any(frame_number(name) is not None for name in ("jpg", "seg.png", "000.cls", "1234567.jpg"))
    kinds = ("image", "video", "frame", "cls", "seg.png")
    assert tuple(map(kind_of, ("png", "webm", "003.png", "cls", "seg.png"))) == kinds
    assert of_clips(["cls", "001.jpg", "jpg", "mp4"]) == ("001.jpg", "mp4")


def test_frames_come_in_the_order_of_their_numbers():
    members = {"10.png": b"c", "2.png": b"b", "cls": b"0", "png": b"thumbnail", "1.jpg": b"a"}
    clip = clip_in(members, lambda data: data)  # pyright: ignore[reportArgumentType]
    assert isinstance(clip, Pictures) and clip.files == (b"a", b"b", b"c")
    assert list(clip.frames((0, 2))) == [b"a", b"c"] and clip_in({"cls": b"0"}, bytes) is None  # pyright: ignore
    with pytest.raises(SampleError, match="frame 1 is there twice: 1.jpg and 001.png"):
        clip_in({"1.jpg": b"", "001.png": b""}, bytes)  # pyright: ignore[reportArgumentType]
