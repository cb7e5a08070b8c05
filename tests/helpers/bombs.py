"""Small inputs that promise, or unfold to, far more than a machine has: (what reads it, the input)."""

import gzip
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from PIL import Image
from videokit import box, of_packets, promising

from launch.saved.run import read_run
from pipeline.backbone.weights.files import read_state_dict
from pipeline.config.load import load_config
from pipeline.data.layouts.picture_files import read_picture
from pipeline.data.members.decode import decode_captions, decode_image, decode_mask
from pipeline.data.members.video import check_video
from pipeline.data.shards.describe import CLASSES, read_names
from pipeline.data.shards.find import load_manifest
from pipeline.data.shards.tar_index import index_tar

Bomb = Callable[[Path], object]
HUGE = 900 << 20
SIDE = 8192
"""8192 x 8192 is the largest picture that is decoded."""


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, depth: int = 8, colours: int = 2, data: bytes = b"", *more: bytes) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


@cache
def _zeros(size: int) -> bytes:
    """Deflated zeros: one block of a megabyte, as often as it takes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = (size % 65521) << 16 | 1
    return b"\x78\xda" + block * (size >> 20) + packer.flush() + checksum.to_bytes(4, "big")


def _with(kind: bytes, start: bytes, colours: int = 2) -> bytes:
    """A PNG with a chunk that unfolds to 900 MB."""
    return _png(8, 8, 8, colours, b"", _chunk(kind, start + _zeros(HUGE)))


def _jpeg(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "JPEG")
    data, place = bytearray(out.getvalue()), out.getvalue().index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def _webp(width: int, height: int) -> bytes:
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = (
        b"WEBPVP8X"
        + struct.pack("<I", 10)
        + b"\x02\0\0\0"
        + sides
        + b"ANIM"
        + struct.pack("<I", 6)
        + bytes(6)
    )
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def _of_image(data: Callable[[], bytes]) -> Bomb:
    return lambda folder: decode_image(data())


def _avi(picture: bytes, width: int, height: int) -> Bomb:
    """A video of one JPEG, whose header says another size."""
    data = bytearray(of_packets([picture], (8, 8)))
    place = data.index(b"strf") + 12
    data[place : place + 8] = struct.pack("<II", width, height)
    return lambda folder: check_video(bytes(data), "avi")


def _compressed_header() -> bytes:
    packed = struct.pack(">I", HUGE) + _zeros(HUGE)
    return box(b"moov", box(b"cmov", box(b"dcom", b"zlib") + box(b"cmvd", packed)))


def _file(name: str, data: Callable[[], bytes], read: Bomb) -> Bomb:
    def bomb(folder: Path) -> object:
        (folder / name).write_bytes(data())
        return read(folder / name)

    return bomb


def _sparse_tar(kind: bytes, size: int) -> Bomb:
    """A header that is followed by `size` bytes of holes."""

    def bomb(folder: Path) -> object:
        info = tarfile.TarInfo("././@LongLink")
        info.type, info.size = kind, size
        with open(folder / "x.tar", "wb") as file:
            file.write(info.tobuf(tarfile.GNU_FORMAT))
            file.truncate(512 + size + 1024)
        return index_tar(folder / "x.tar")

    return bomb


def _many_members(folder: Path) -> object:
    """Twenty thousand long suffixes of one sample."""
    with tarfile.open(folder / "x.tar", "w") as tar:
        for number in range(20_000):
            tar.addfile(tarfile.TarInfo(f"a.{number}{'x' * 900}"))
    return index_tar(folder / "x.tar")


def _manifest(folder: Path) -> object:
    shard = {"name": "x.tar", "num_samples": 2**62, "num_bytes": 2**62, "sha256": "", "index_sha256": ""}
    plain = {"format": 1, "root": None, "schema": [], "classes": [], "shards": [shard], "digest": ""}
    (folder / "manifest.json").write_text(json.dumps(plain))
    return load_manifest(str(folder))


def _sparse_manifest(folder: Path) -> object:
    with open(folder / "manifest.json", "wb") as file:
        file.truncate(HUGE)
    return load_manifest(str(folder))


def _checkpoint(folder: Path) -> object:
    with open(folder / "manifest.json", "wb") as file:
        file.truncate(HUGE)
    return read_run(folder)


def _safetensors(size: int) -> Bomb:
    def bomb(folder: Path) -> object:
        with open(folder / "x.safetensors", "wb") as file:
            file.write(size.to_bytes(8, "little") + b"{")
            file.truncate(8 + size)
        return read_state_dict(folder / "x.safetensors")

    return bomb


def _as_picture(name: str, data: Callable[[], bytes]) -> Bomb:
    return _file(name, data, lambda path: read_picture(path, 64))


def _tiff(width: int, height: int) -> bytes:
    tags = (
        (256, width),
        (257, height),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 8),
        (278, height),
        (279, width * height),
    )
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value % 2**32) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def _bmp(side: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, side, side, 1, 24, *[0] * 6)


def _deep(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * depth + closing * depth


BOMBS: dict[str, Bomb] = {
    "PNG of 2^31 x 2^31": _of_image(lambda: _png(2**31 - 1, 2**31 - 1)),
    "PNG above the limit": _of_image(lambda: _png(SIDE + 1, SIDE)),
    "PNG at the limit without pixels": _of_image(lambda: _png(SIDE, SIDE)),
    "PNG with a profile of 900 MB": _of_image(lambda: _with(b"iCCP", b"x\0\0")),
    "PNG with a text of 900 MB": _of_image(lambda: _with(b"zTXt", b"x\0\0")),
    "PNG with an international text of 900 MB": _of_image(lambda: _with(b"iTXt", b"x\0\1\0\0\0")),
    "mask of 2^31 x 2^31": lambda folder: decode_mask(_png(2**31 - 1, 2**31 - 1, 8, 0)),
    "mask whose text unfolds to 900 MB": lambda folder: decode_mask(_with(b"zTXt", b"x\0\0", 0)),
    "JPEG of 65,535 x 65,535": _of_image(lambda: _jpeg(65535, 65535)),
    "WebP of 2^24 x 2^8": _of_image(lambda: _webp(1 << 24, 1 << 8)),
    "WebP of 16,384 x 16,384": _of_image(lambda: _webp(1 << 14, 1 << 14)),
    "video with a frame of 65,500 x 65,500": _avi(_jpeg(65500, 65500), 8, 8),
    "MP4 that promises 80 million frames": lambda folder: check_video(promising(80_000_000), "mp4"),
    "MOV with a header that unfolds to 900 MB": lambda folder: check_video(_compressed_header(), "mov"),
    "TIFF of 2^31 x 2^31 as a picture": _as_picture("x.tif", lambda: _tiff(2**31 - 1, 2**31 - 1)),
    "GIF of 65,535 x 65,535 as a picture": _as_picture("x.gif", lambda: b"GIF89a" + b"\xff" * 4 + bytes(3)),
    "BMP of 2^31 x 2^31 as a picture": _as_picture("x.bmp", lambda: _bmp(2**31 - 1)),
    "tar with a name of 900 MB": _sparse_tar(tarfile.GNUTYPE_LONGNAME, HUGE),
    "tar with a link of 900 MB": _sparse_tar(tarfile.GNUTYPE_LONGLINK, HUGE),
    "tar with a header of pax of 900 MB": _sparse_tar(tarfile.XHDTYPE, HUGE),
    "tar with a global header of 900 MB": _sparse_tar(tarfile.XGLTYPE, HUGE),
    "tar with a sparse map of 900 MB": _sparse_tar(tarfile.GNUTYPE_SPARSE, HUGE),
    "tar with many long suffixes": _many_members,
    "gzip of 900 MB, named tar": _file("x.tar", lambda: gzip.compress(bytes(1 << 20)) * 900, index_tar),
    "safetensors with a header of 900 MB": _safetensors(HUGE),
    "safetensors with a header of 90 MB": _safetensors(90 << 20),
    "checkpoint's manifest of 900 MB": _checkpoint,
    "manifest with 2^62 samples": _manifest,
    "manifest of 900 MB": _sparse_manifest,
    "captions nested deep": lambda folder: decode_captions(_deep(500_000)),
    "captions of 2 MB": lambda folder: decode_captions(b'{"captions": ["' + b"a" * (2 << 20) + b'"]}'),
    "class names nested deep": _file(
        CLASSES, lambda: _deep(1_000_000), lambda path: read_names(str(path.parent))
    ),
    "config nested deep": _file("x.json", lambda: _deep(500_000), load_config),
    "config in YAML nested deep": _file("x.yaml", lambda: _deep(3000), load_config),
    "config in YAML of anchors": _file("x.yaml", lambda: _laughs(), load_config),
}
READ: dict[str, Bomb] = {
    "video whose header says 30,000 x 30,000": _avi(_jpeg(8, 8), 30000, 30000),
    "PNG whose pixels unfold to 900 MB": _of_image(lambda: _png(16, 16, data=_zeros(HUGE))),
}
"""What may be read, within the limit."""


def _laughs() -> bytes:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "\n".join(lines).encode()


def bombs() -> Iterator[tuple[str, Bomb, bool]]:
    """Yields (name, bomb, whether it has to be refused)."""
    yield from ((name, bomb, True) for name, bomb in BOMBS.items())
    yield from ((name, bomb, False) for name, bomb in READ.items())
