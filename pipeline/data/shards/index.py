"""The index of a shard: the place of each member of each sample. On disk it is a small file beside the shard,
which readers map into memory.

The file is a header, the suffixes (UTF-8, one a line, filled up with line ends to a multiple of 4 bytes), and
four columns, little-endian: blocks uint32 [S, M], sizes uint32 [S, M], ends of keys uint32 [S], and the keys
(UTF-8) without anything between them. So its length follows from its header, and is checked before anything
else is looked at.
"""

import hashlib
import json
import mmap
import struct
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_MEMBER = 1 << 28
"""Bytes of the largest member that is accepted."""
MAX_SUFFIXES = 256
BLOCK = 512
"""Bytes of a block of a tar. Every member begins at a block."""
SUFFIX = ".index"
"""Follows the name of a shard in the name of its index."""
OLD_SUFFIX = ".index.json"
"""The same in sets that were made before indexes were binary."""
_MAGIC = b"DTEMIDX1"
_HEADER = struct.Struct("<8s4I")
"""Magic, S samples, M suffixes, bytes of the suffixes, bytes of the keys."""
_ABSENT = 2**32 - 1
"""The size of a member that a sample does not have."""
_U4 = np.dtype("<u4")

Buffer = bytes | mmap.mmap


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The S samples of one shard, and the M suffixes of their members."""

    suffixes: tuple[str, ...]
    blocks: NDArray[np.uint32]
    """[S, M]: where a member begins, in blocks of 512 bytes."""
    sizes: NDArray[np.uint32]
    """[S, M] bytes; 2**32 - 1 where the sample has no such member."""
    ends: NDArray[np.uint32]
    """[S]: where a key ends in `text`. It begins where the one before ends."""
    text: NDArray[np.uint8]
    """The keys of all samples, in UTF-8."""

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.ends)

    def key(self, sample: int) -> str:
        start = int(self.ends[sample - 1]) if sample else 0
        return self.text[start : int(self.ends[sample])].tobytes().decode()

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(map(self.key, range(len(self))))

    def members(self, sample: int, only: Collection[str] | None = None) -> dict[str, tuple[int, int]]:
        """Maps a suffix to (offset, size) in bytes, for the members that the sample has. only: suffixes of
        those that are wanted; None: all."""
        found = zip(self.suffixes, self.blocks[sample].tolist(), self.sizes[sample].tolist(), strict=True)
        return {
            suffix: (block * BLOCK, size)
            for suffix, block, size in found
            if size != _ABSENT and (only is None or suffix in only)
        }

    def to_bytes(self) -> bytes:
        """The index as it is stored, always in one form, so that its hash names the content."""
        suffixes = "\n".join(self.suffixes).encode()
        suffixes += b"\n" * (-len(suffixes) % 4)
        header = _HEADER.pack(_MAGIC, len(self), len(self.suffixes), len(suffixes), len(self.text))
        columns = (self.blocks, self.sizes, self.ends)
        return b"".join(
            (header, suffixes, *(column.astype(_U4).tobytes() for column in columns), self.text.tobytes())
        )

    @classmethod
    def of(
        cls,
        keys: Collection[str],
        suffixes: Collection[str],
        offsets: NDArray[np.int64],
        sizes: NDArray[np.int64],
    ) -> "ShardIndex":
        """offsets, sizes: [S, M] bytes, sizes -1 for what a sample does not have. Raises ValueError for
        members that do not lie in blocks."""
        if (offsets % BLOCK).any() or (offsets // BLOCK >= _ABSENT).any() or (offsets < 0).any():
            raise ValueError("a member does not begin at a block of 512 bytes, or lies too far behind")
        encoded = [key.encode() for key in keys]
        ends = np.cumsum([len(key) for key in encoded], dtype=np.int64)
        return cls(
            tuple(suffixes),
            (offsets // BLOCK).astype(_U4),
            np.where(sizes < 0, _ABSENT, sizes).astype(_U4),
            ends.astype(_U4),
            np.frombuffer(b"".join(encoded), dtype=np.uint8),
        )

    @classmethod
    def from_bytes(cls, data: Buffer, num_bytes: int) -> "ShardIndex":
        """The inverse of `to_bytes`, whose arrays are views of `data`. Raises ValueError for what cannot be
        the index of a shard of `num_bytes`."""
        if data[:1] in (b"{", b"["):
            return _from_json(bytes(data), num_bytes)
        if len(data) < _HEADER.size:
            raise ValueError("it is cut off")
        magic, samples, kinds, suffix_bytes, key_bytes = _HEADER.unpack_from(data)
        if magic != _MAGIC or not 0 < kinds <= MAX_SUFFIXES or not samples:
            raise ValueError("it is no index that this program reads")
        table = 4 * samples * kinds
        if len(data) != (expected := _HEADER.size + suffix_bytes + 2 * table + 4 * samples + key_bytes):
            raise ValueError(f"it has {len(data)} bytes, and {expected} by its header")
        suffixes = bytes(data[_HEADER.size : _HEADER.size + suffix_bytes]).decode().split("\n")
        start = _HEADER.size + suffix_bytes
        blocks, sizes = (
            np.frombuffer(data, _U4, samples * kinds, at).reshape(samples, kinds)
            for at in (start, start + table)
        )
        ends = np.frombuffer(data, _U4, samples, start + 2 * table)
        text = np.frombuffer(data, np.uint8, key_bytes, start + 2 * table + 4 * samples)
        index = cls(tuple(suffixes[:kinds]), blocks, sizes, ends, text)
        index._check(num_bytes)
        return index

    def _check(self, num_bytes: int) -> None:
        """Raises ValueError unless every member lies in a shard of `num_bytes`, and every key in the text."""
        names = self.suffixes
        if len(set(names)) != len(self.sizes[0]) or not all(name and name.isprintable() for name in names):
            raise ValueError("its suffixes are not different words")
        there = self.sizes != _ABSENT
        ends = self.blocks.astype(np.int64) * BLOCK + self.sizes
        if (self.sizes[there] > MAX_MEMBER).any() or (ends[there] > num_bytes).any():
            raise ValueError("a member lies outside of the shard")
        starts = np.concatenate([[0], self.ends[:-1]]).astype(np.int64)
        if (starts >= self.ends).any() or self.ends[-1] != len(self.text):
            raise ValueError("its keys do not follow one another")
        self.text.tobytes().decode()
        if (self.text[starts] & 0xC0 == 0x80).any():
            raise ValueError("a key begins inside of a character")


def map_file(file: int) -> Buffer:
    """The content of an open file that nobody writes to, mapped into memory, which keeps a descriptor. A file
    that is replaced or removed meanwhile stays as it was; one that is cut off in its place would end the
    process. Raises OSError, and ValueError for an empty file."""
    return mmap.mmap(file, 0, access=mmap.ACCESS_READ)


def parse_index(data: Buffer, num_bytes: int, num_samples: int, sha256: str) -> ShardIndex:
    """The index with this hash, of a shard of so many bytes and samples. Raises ValueError for any other."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError("it is not the one that the manifest names")
    index = ShardIndex.from_bytes(data, num_bytes)
    if len(index) != num_samples:
        raise ValueError(f"it has {len(index)} samples and the manifest says {num_samples}")
    return index


def _from_json(data: bytes, num_bytes: int) -> ShardIndex:
    """The index of a set that was made before indexes were binary."""
    try:
        plain = json.loads(data)
        keys, suffixes = tuple(plain["keys"]), tuple(plain["suffixes"])
        shape = (len(keys), len(suffixes))
        offsets, sizes = (
            np.array(plain[name], dtype=np.int64).reshape(shape) for name in ("offsets", "sizes")
        )
        if not keys or not all(isinstance(text, str) for text in keys + suffixes):
            raise ValueError("keys and suffixes are not all text")
        if (sizes < -1).any() or (sizes > MAX_MEMBER).any():
            raise ValueError("a member lies outside of the shard")
        index = ShardIndex.of(keys, suffixes, offsets, sizes)
        index._check(num_bytes)
        return index
    except (KeyError, TypeError, OverflowError, RecursionError) as err:
        raise ValueError(
            f"it is not made of keys, suffixes and places ({err or type(err).__name__})"
        ) from err
