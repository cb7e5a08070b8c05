"""Makes small videos, in pictures and stored, without the writer that is under test."""

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shardkit import image, write_tar

from pipeline.data.make.existing import index_shards

RATE = 25


def pictures(count: int, size: tuple[int, int] = (16, 24), seed: int = 0) -> NDArray[np.uint8]:
    """[T, H, W, 3] of smooth noise, each frame another."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, size[0] // 4, size[1] // 4, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


def stored(
    frames: NDArray[np.uint8],
    form: str,
    codec: str,
    pixels: str,
    *,
    whole: dict[str, str] | None = None,
    **options: str,
) -> bytes:
    """A video file of frames [T, H, W, 3]. form: FFmpeg's name of the container, which has the options
    `whole`."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format=form, options=whole or {}) as container:
        stream: Any = container.add_stream(codec, rate=RATE, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


def exact(frames: NDArray[np.uint8]) -> bytes:
    """A mkv from which the same pixels come."""
    return stored(frames, "matroska", "ffv1", "bgr0")


def box(name: bytes, body: bytes) -> bytes:
    """A box of an MP4."""
    return struct.pack(">I", 8 + len(body)) + name + body


def patched(data: bytes, table: bytes, *values: int) -> bytes:
    """An MP4 whose first table of this name begins with these numbers."""
    place = data.index(table) + 4
    return data[:place] + struct.pack(f">{len(values)}I", *values) + data[place + 4 * len(values) :]


def promising(count: int) -> bytes:
    """An MP4 of two frames that says that they are so many."""
    data = patched(stored(pictures(2), "mp4", "libx264", "yuv420p"), b"stsz", 0, 1, count)
    return patched(data, b"stsc", 0, 1, 1, count, 1)


def of_packets(
    packets: Sequence[bytes], size: tuple[int, int], form: str = "avi", codec: str = "mjpeg"
) -> bytes:
    """A file whose packets are these bytes, and whose header says this (height, width)."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format=form) as container:
        stream: Any = container.add_stream(codec, rate=RATE)
        stream.height, stream.width, stream.pix_fmt = *size, "yuvj420p"
        for number, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, number, number, True
            packet.time_base = Fraction(1, RATE)
            container.mux(packet)
    return out.getvalue()


def with_cover(picture: bytes) -> bytes:
    """An MP4 whose one picture is the cover of a record."""
    import av
    from av.stream import Disposition

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream: Any = container.add_stream("mjpeg", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = 16, 24, "yuvj420p"
        stream.disposition = Disposition.attached_pic
        packet = av.Packet(picture)
        packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, 0, 0, True
        container.mux(packet)
    return out.getvalue()


def clip_members(key: str, label: int, frames: int, *, seed: int, size: tuple[int, int] = (12, 16)) -> list:
    """(member name, bytes) of a sample in pictures."""
    numbered = [(f"{key}.{number:03d}.png", image(100 * seed + number, size)) for number in range(frames)]
    return [*numbered, (f"{key}.cls", str(label).encode())]


def write_clips(folder: Path, counts: Sequence[int] = (5, 3), frames: int = 6) -> Path:
    """Shards of clips in pictures, of three classes."""
    tars, number = [], 0
    for shard, count in enumerate(counts):
        members = []
        for n in range(number, number + count):
            members += clip_members(f"{n}", n % 3, frames, seed=n)
        tars.append(str(write_tar(folder / f"part-{shard:05d}.tar", members)))
        number += count
    index_shards(tars, folder, classes=["a", "b", "c"])
    return folder
