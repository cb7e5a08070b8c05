"""Images that reach the device as files: JPEGs whose headers were read. The device decodes and crops them.

B images of a batch, K of them coded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from pipeline.errors import ConfigError, SampleError, first_few
from pipeline.framing import Framing

PART = 1 << 26
"""Pixels of pictures that are decoded at once (192 MiB)."""
_decoders: set[torch.device] = set()
"""Devices on which a JPEG has decoded, in this process."""


@dataclass(frozen=True)
class Jpeg:
    """A file that a device can decode, of a picture of height x width pixels."""

    data: bytes
    height: int
    width: int


@dataclass(frozen=True)
class Framed:
    """An image that is not decoded yet: a file, and which part of it is meant. It stands for a tensor
    uint8 [3, H, W]."""

    jpeg: Jpeg
    framing: Framing

    @property
    def shape(self) -> torch.Size:
        return torch.Size((3, *self.framing.window.size))


@dataclass(frozen=True)
class File:
    """A file of a batch: its size in bytes, the (height, width) that its header says, and its sample's
    key."""

    num_bytes: int
    shape: tuple[int, int]
    key: str


@dataclass(frozen=True)
class Place:
    """A coded image: its place in the batch, the number of its file, and its part of the picture."""

    image: int
    file: int
    framing: Framing


@dataclass(frozen=True)
class Coded:
    """The coded images of a batch. Views of a sample share its file.

    data: uint8, on the host: file after file.
    """

    data: Tensor
    files: tuple[File, ...]
    places: tuple[Place, ...]

    @classmethod
    def of(cls, images: Sequence[Tensor | Framed], keys: Sequence[str]) -> "Coded | None":
        """Those images of a batch that are coded. keys: of their samples. Returns None where there is
        none."""
        numbers: dict[int, int] = {}
        jpegs, files, places = [], [], []
        for number, (image, key) in enumerate(zip(images, keys, strict=True)):
            if isinstance(image, Tensor):
                continue
            jpeg = image.jpeg
            if id(jpeg) not in numbers:
                numbers[id(jpeg)] = len(files)
                jpegs.append(jpeg.data)
                files.append(File(len(jpeg.data), (jpeg.height, jpeg.width), key))
            places.append(Place(number, numbers[id(jpeg)], image.framing))
        if not places:
            return None
        return cls(torch.frombuffer(bytearray().join(jpegs), dtype=torch.uint8), tuple(files), tuple(places))

    def among(self, decoded: Tensor, device: torch.device) -> Tensor:
        """uint8 [B, 3, H, W] on the device: the coded images in their places, and in the others those that
        were decoded before, [B - K, 3, H, W]. At most PART pixels of pictures, or one larger picture, are
        there beside them. Raises SampleError that names samples that do not decode, and ConfigError where no
        JPEG has ever decoded on the device."""
        if device.type != "cuda":
            return self._among(decoded, device)
        # nvJPEG has a stream of its own, which does not wait until what uses the memory that it gets is done:
        # so that memory is of a stream that is waited for, and not of the one that trains
        aside, current = _stream_aside(device), torch.cuda.current_stream(device)
        with torch.cuda.stream(aside):
            images = self._among(decoded, device)
        current.wait_stream(aside)
        images.record_stream(current)
        return images

    def _among(self, decoded: Tensor, device: torch.device) -> Tensor:
        num_images = len(decoded) + len(self.places)
        images = torch.empty((num_images, *decoded.shape[1:]), dtype=torch.uint8, device=device)
        coded = {place.image for place in self.places}
        others = [image for image in range(num_images) if image not in coded]
        images[torch.tensor(others, dtype=torch.int64, device=device)] = decoded.to(device, non_blocking=True)
        data = self.data.split([file.num_bytes for file in self.files])
        for numbers in self._parts():
            self._write({number: data[number] for number in numbers}, images, device)
        return images

    def _parts(self) -> list[list[int]]:
        """Numbers of the files that are decoded at once."""
        parts: list[list[int]] = [[]]
        pixels = 0
        for number, file in enumerate(self.files):
            own = file.shape[0] * file.shape[1]
            if parts[-1] and pixels + own > PART:
                parts.append([])
                pixels = 0
            parts[-1].append(number)
            pixels += own
        return parts

    def _write(self, files: Mapping[int, Tensor], images: Tensor, device: torch.device) -> None:
        """Decodes files, number -> data, and writes what is made of them into images. The pictures are gone
        with its end."""
        pictures = self._pictures(files, device)
        for place in self.places:
            if place.file in pictures:
                images[place.image] = place.framing(pictures[place.file])

    def _pictures(self, files: Mapping[int, Tensor], device: torch.device) -> dict[int, Tensor]:
        """The picture of each file, uint8 [3, H, W] on the device."""
        try:
            pictures = _decoded(list(files.values()), device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as err:
            raise self._failed(files, device, str(err).splitlines()[0].rpartition(", ")[2]) from err
        _decoders.add(device)
        found = dict(zip(files, pictures, strict=True))
        wrong = [
            number for number, picture in found.items() if picture.shape != (3, *self.files[number].shape)
        ]
        if wrong:
            raise SampleError(f"{self._named(wrong)}: decoded to another size than the header says")
        return found

    def _failed(
        self, files: Mapping[int, Tensor], device: torch.device, reason: str
    ) -> ConfigError | SampleError:
        """The error of files of which at least one does not decode, for which torchvision gives up all of
        them."""
        if not _has_decoder(device):
            return ConfigError(
                f"no JPEG decodes on {device}: {reason}; give data.decode='worker', or a torchvision with "
                "nvJPEG"
            )
        bad = [number for number, data in files.items() if not _decodes(data, device)]
        return SampleError(f"{self._named(bad or list(files))}: decode on {device} failed: {reason}")

    def _named(self, numbers: Sequence[int]) -> str:
        keys = dict.fromkeys(repr(self.files[number].key) for number in numbers)
        return f"sample {first_few(list(keys), 3, ', ')}"


def _has_decoder(device: torch.device) -> bool:
    """Whether a JPEG has ever decoded on the device. Where none has, a plain one is tried."""
    plain = encode_jpeg(torch.zeros(3, 16, 16, dtype=torch.uint8))
    assert isinstance(plain, Tensor), "one file"
    if device not in _decoders and _decodes(plain, device):
        _decoders.add(device)
    return device in _decoders


def _decodes(data: Tensor, device: torch.device) -> bool:
    """Raises OutOfMemoryError."""
    try:
        _decoded([data], device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return False
    return True


def _decoded(files: list[Tensor], device: torch.device) -> list[Tensor]:
    """The pictures, uint8 [3, H, W], of files on the host. Raises OutOfMemoryError, which says nothing of the
    files, and RuntimeError."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    try:
        pictures = decode_jpeg(files, ImageReadMode.RGB, device)
    except RuntimeError as err:
        if "out of memory" in str(err):  # torchvision makes another error of it
            raise torch.OutOfMemoryError(str(err)) from err
        raise
    assert isinstance(pictures, list), "one of each file"
    return pictures


@cache
def _stream_aside(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
