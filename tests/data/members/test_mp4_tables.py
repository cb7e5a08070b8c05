"""Tables of MP4 and MOV that promise more than a machine has, wherever FFmpeg would find them."""

import struct

import pytest

from pipeline.data.members import mp4_tables
from pipeline.data.members.mp4_tables import check_tables
from pipeline.data.members.video import Video
from pipeline.errors import SampleError

pytest.importorskip("av")
from videokit import box, patched, pictures, promising, stored

FRAMES = pictures(9)
WHOLE = stored(FRAMES, "mp4", "libx264", "yuv420p")
LARGE = 80_000_000
TABLES = {
    "stsz": box(b"stsz", struct.pack(">III", 0, 1, LARGE)),
    "stz2": box(b"stz2", struct.pack(">III", 0, 4, LARGE)),
    "trun": box(b"trun", struct.pack(">II", 0, LARGE)),
    "elst": box(b"elst", struct.pack(">II", 0, LARGE)),
}


@pytest.mark.parametrize("form", ["mp4", "mov"])
@pytest.mark.parametrize("codec", [("libx264", "yuv420p"), ("mpeg4", "yuv420p"), ("mjpeg", "yuvj420p")])
def test_what_ffmpeg_writes_is_within_the_limit(form, codec, monkeypatch):
    monkeypatch.setattr(mp4_tables, "MAX_ENTRIES", 9)
    check_tables(stored(FRAMES, form, *codec), form)
    in_parts = stored(FRAMES, form, *codec, whole=dict(movflags="frag_keyframe+empty_moov"))
    assert b"trun" in in_parts and Video(in_parts, form).num_frames == 9
    monkeypatch.setattr(mp4_tables, "MAX_ENTRIES", 8)
    for data in (stored(FRAMES, form, *codec), in_parts):
        with pytest.raises(SampleError, match=f"{form} promises 9 samples .* in 1 edits; the limit is 8"):
            check_tables(data, form)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("holder", ["moov", "trak", "free", "moof", "udta", "long", "last"])
def test_a_table_that_promises_too_much_is_found(name, holder):
    table = TABLES[name]
    more = {
        "long": struct.pack(">I4sQ", 1, b"moof", 16 + len(table)) + table,
        "last": struct.pack(">I4s", 0, b"moov") + table,
    }
    with pytest.raises(SampleError, match="the limit is 8388608 in all: cut it into shorter clips"):
        check_tables(WHOLE + more.get(holder, box(holder.encode(), table)), "mp4")


@pytest.mark.parametrize(
    "around",
    [
        lambda table: box(b"moov", box(b"meta", bytes(4) + box(b"hdlr", bytes(24)) + box(b"ilst", table))),
        lambda table: box(b"moov", box(b"meta", box(b"hdlr", bytes(24)) + table)),
        lambda table: box(b"moov", box(b"stsd", bytes(8) + box(b"avc1", bytes(78) + table))),
        lambda table: box(b"moov", box(b"trak", box(b"mdia", box(b"minf", box(b"stbl", table))))),
    ],
)
def test_tables_in_boxes_with_fields_of_their_own_are_found(around):
    with pytest.raises(SampleError, match="promises 80000000 samples"):
        check_tables(around(TABLES["stsz"]), "mov")


def test_words_and_frames_are_no_tables():
    """A word as "trunk" in a comment, whose next letters would be a large number; and what frames hold."""
    for body in (b"an elephant's trunk and more", bytes(4) + b"cmov", TABLES["stsz"]):
        check_tables(box(b"mdat", body) + WHOLE, "mp4")
        check_tables(WHOLE + box(b"moov", box(b"udta", box(b"\xa9cmt", body))), "mp4")


def test_a_promise_is_refused_before_it_is_opened():
    with pytest.raises(SampleError, match="mp4 promises 80000000 samples"):
        Video(promising(LARGE), "mp4")
    with pytest.raises(SampleError, match="mov has a compressed header; store it anew"):
        Video(box(b"moov", box(b"cmov", b"")), "mov")
    within = patched(WHOLE, b"stsz", 0, 0, 9)
    assert within == WHOLE and Video(within, "mp4").num_frames == 9


@pytest.mark.parametrize(
    "data", [b"", b"\0\0\0\0", b"\0\0\0\1moov\0\0", b"\0\0\0\7moov", 300 * b"\0\0\4\0moov"]
)
def test_what_is_cut_off_is_left_to_ffmpeg(data):
    check_tables(data, "mp4")
