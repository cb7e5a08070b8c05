"""Tricks of tar archives. A shard is read by the place of its members, and never unpacked."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial

from payloads import Payload, Sandbox
from pipeline.data.make.existing import index_shards
from pipeline.data.shards.tar_index import index_tar

Change = Callable[[tarfile.TarInfo, Sandbox], None]


def _of_type(kind: bytes, link: str = "") -> Change:
    def change(info: tarfile.TarInfo, sandbox: Sandbox) -> None:
        info.type, info.linkname, info.size = kind, sandbox.fill(link), 0

    return change


def _named(name: str) -> Change:
    return lambda info, sandbox: setattr(info, "name", sandbox.fill(name))


def _with_header(**fields: str) -> Change:
    return lambda info, sandbox: info.pax_headers.update({k: sandbox.fill(v) for k, v in fields.items()})


REFUSED: dict[str, Change] = {
    "link to a file": _of_type(tarfile.SYMTYPE, "../../precious"),
    "link to the root": _of_type(tarfile.SYMTYPE, "/"),
    "hard link": _of_type(tarfile.LNKTYPE, "/etc/passwd"),
    "hard link to a member": _of_type(tarfile.LNKTYPE, "a.cls"),
    "character device": _of_type(tarfile.CHRTYPE),
    "block device": _of_type(tarfile.BLKTYPE),
    "pipe": _of_type(tarfile.FIFOTYPE),
    "contiguous file": _of_type(tarfile.CONTTYPE),
    "sparse file of GNU": _of_type(tarfile.GNUTYPE_SPARSE),
    "volume label": _of_type(b"V"),
    "continued file": _of_type(b"M"),
    "dumped folder": _of_type(b"D"),
    "unknown type": _of_type(b"Z"),
    "name with a terminal's command": _named("\x1b]0;pwn\x07a.cls"),
    "name with a line break": _named("a\n.cls"),
    "name that turns round": _named("\u202ea.cls"),
    "name of 2,000 characters": _named("a" * 2000 + ".cls"),
    "name that is a command": _named("\n;SHELL;.cls"),
    "sparse file of pax": _with_header(
        **{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "x"}
    ),
    "old sparse file of pax": _with_header(**{"GNU.sparse.map": "0,1", "GNU.sparse.size": str(2**40)}),
    "sparse map of text": _with_header(**{"GNU.sparse.map": "PYTHON"}),
    "size of pax": _with_header(size=str(2**62)),
    "size of pax below zero": _with_header(size="-1024"),
    "size of pax that is text": _with_header(size="PYTHON"),
}
HARMLESS: dict[str, Change] = {
    "path upwards": _named("../../precious.cls"),
    "path from the root": _named("/tmp/canary.cls"),
    "path of Windows": _named("..\\..\\canary.cls"),
    "command in a name": _named("$(SHELL).cls"),
    "command behind a bar": _named("|SHELL.cls"),
    "path of pax": _with_header(path="../../../precious.cls"),
    "owner of pax": _with_header(uname="root;SHELL", gname="$(SHELL)", comment="PYTHON"),
    "permissions of root": lambda info, sandbox: setattr(info, "mode", 0o6777),
    "folder": _of_type(tarfile.DIRTYPE),
}
ORDERS = {
    "member twice": ["a.cls", "a.cls"],
    "member twice but for its case": ["a.cls", "a.CLS"],
    "sample twice": ["a.cls", "b.cls", "a.png"],
    "no sample": ["README", ".hidden", "folder/.x"],
}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zip": lambda data: _zipped(data),
    "ar": lambda data: b"!<arch>\n" + data,
    "gzip behind a tar": lambda data: data + gzip.compress(data),
    "tar behind a tar": lambda data: data + data,
    "script behind a tar": lambda data: data + b"#!/bin/sh\ntouch canary\n",
    "half a tar": lambda data: data[:700],
    "no end": lambda data: data[:1024],
    "nothing": lambda data: b"",
    "zeros": lambda data: bytes(10240),
    "checksum": lambda data: data[:148] + b"0000000\0" + data[156:],
    "size below zero": lambda data: _sized(data, b"\xff" * 12),
    "size of 2^88": lambda data: _sized(data, b"\x80" + b"\xff" * 11),
    "size of 8 GiB": lambda data: _sized(data, b"77777777777\0"),
    "size that is text": lambda data: _sized(data, b"touch canary"),
}


def cases() -> Iterator[Payload]:
    for name, change in REFUSED.items():
        yield Payload(name, partial(_index_member, change))
    for name, change in HARMLESS.items():
        yield Payload(name, partial(_index_member, change), refused=False)
    for name, members in ORDERS.items():
        yield Payload(name, partial(_index_names, members))
    for name, change in PACKED.items():
        yield Payload(name, partial(_index_bytes, change))


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def member(name: str, data: bytes = b"1") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info, data


def _index_member(change: Change, sandbox: Sandbox) -> None:
    info, data = member("b.cls")
    change(info, sandbox)
    _index(tar_of(member("a.cls"), (info, data), member("c.cls")), sandbox)
    (sandbox.folder / "x.tar.index").unlink(missing_ok=True)
    index_shards([str(sandbox.folder / "x.tar")], sandbox.folder)


def _index_names(names: list[str], sandbox: Sandbox) -> None:
    _index(tar_of(*map(member, names)), sandbox)


def _index_bytes(change: Callable[[bytes], bytes], sandbox: Sandbox) -> None:
    _index(change(tar_of(member("a.cls"))), sandbox)


def _index(data: bytes, sandbox: Sandbox) -> None:
    path = sandbox.folder / "x.tar"
    path.write_bytes(data)
    index_tar(path)


def _zipped(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("a.cls", data)
    return out.getvalue()


def _sized(data: bytes, size: bytes) -> bytes:
    header = bytearray(data[:512])
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]
