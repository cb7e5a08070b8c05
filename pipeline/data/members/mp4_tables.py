"""What the tables of an MP4 or MOV promise, looked at before FFmpeg makes an index of it.

A box is a length, a name of four letters and a body, which may hold boxes. One number in a table can stand
for many samples of one size. So a kilobyte could ask FFmpeg for gigabytes before a frame is read.
"""

import struct
from collections.abc import Iterator

from pipeline.errors import SampleError

MAX_ENTRIES = 1 << 23
"""Most entries of the index of a file, over all its tracks: 24 bytes and more each. An hour of pictures and
sound has a twentieth of them; three minutes of sound that is not compressed have them all."""
MAX_DEPTH = 12
"""Boxes in boxes; FFmpeg follows 10."""
_HOLDERS = frozenset(
    b"moov trak mdia minf stbl edts moof traf mvex udta ilst dinf ipro sinf schi tref wave free hoov".split()
)
"""Boxes that FFmpeg reads as boxes; `free` and `hoov` where it finds no other header."""
_COUNTS = {b"stsz": 8, b"stz2": 8, b"trun": 4, b"elst": 4}
"""Table -> where in its body the number of its entries is."""


def check_tables(data: bytes, form: str) -> None:
    """Raises SampleError for a file whose tables promise too much, or are compressed."""
    samples, edits = 0, 1
    for name, place in _tables(data, 0, len(data), 0):
        if name == b"cmov":
            raise SampleError(
                f"{form} has a compressed header; store it anew, for instance by ffmpeg -c copy"
            )
        place += _COUNTS[name]
        count = int.from_bytes(data[place : place + 4], "big")
        if name == b"elst":
            edits = max(edits, count)
        else:
            samples += count
        if samples * edits > MAX_ENTRIES:
            raise SampleError(
                f"{form} promises {samples} samples of pictures and sound, in {edits} edits; the limit is "
                f"{MAX_ENTRIES} in all: cut it into shorter clips, or store it without sound"
            )


def _tables(data: bytes, place: int, end: int, depth: int) -> Iterator[tuple[bytes, int]]:
    """Name and start of the body of each box that is looked at, wherever FFmpeg would find it."""
    while place + 8 <= end and depth <= MAX_DEPTH:
        length, name = struct.unpack_from(">I4s", data, place)
        body = place + 8
        if length == 1 and place + 16 <= end:
            (length,), body = struct.unpack_from(">Q", data, body), place + 16
        behind = end if length == 0 else min(end, place + length)
        if behind < body:
            return
        if name in _COUNTS or name == b"cmov":
            yield name, body
        elif name in _HOLDERS:
            yield from _tables(data, body, behind, depth + 1)
        elif name == b"meta":
            # its boxes begin with one of this name, behind four bytes or none
            if (first := data.find(b"hdlr", body, behind)) >= body + 4:
                yield from _tables(data, first - 4, behind, depth + 1)
        elif name == b"stsd":
            yield from _in_entries(data, body, behind)
        place = behind


def _in_entries(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int]]:
    """Those in descriptions of samples, which have fields of their own before their boxes."""
    for name in (*_COUNTS, b"cmov"):
        place = data.find(name, start, end)
        while place >= 0:
            yield name, place + 4
            place = data.find(name, place + 4, end)
