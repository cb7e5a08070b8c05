"""Images that reach the device as files: JPEGs whose headers were read. The device decodes and crops them.

B images of a batch, K of them coded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from pipeline.errors import ConfigError, SampleError, counted, first_few
from pipeline.framing import Framing


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
        were decoded before, [B - K, 3, H, W]. Raises SampleError that names the samples that do not
        decode."""
        pictures = self._pictures(device)
        coded = {place.image: place.framing(pictures[place.file]) for place in self.places}
        others = iter(decoded.to(device, non_blocking=True))
        num_images = len(coded) + len(decoded)
        return torch.stack([coded[i] if i in coded else next(others) for i in range(num_images)])

    def _pictures(self, device: torch.device) -> list[Tensor]:
        """The picture of each file, uint8 [3, H, W] on the device."""
        parts = list(self.data.split([file.num_bytes for file in self.files]))
        try:
            pictures = decode_jpeg(parts, ImageReadMode.RGB, device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as err:
            raise self._failed(parts, device, str(err).splitlines()[0].rpartition(", ")[2]) from err
        assert isinstance(pictures, list), "one of each file"
        wrong = [
            file.key
            for file, picture in zip(self.files, pictures, strict=True)
            if picture.shape != (3, *file.shape)
        ]
        if wrong:
            raise SampleError(f"{_named(wrong)}: decoded to another size than the header says")
        return pictures

    def _failed(
        self, parts: Sequence[Tensor], device: torch.device, reason: str
    ) -> ConfigError | SampleError:
        """The error of files of which at least one does not decode, for which torchvision gives up all of
        them."""
        bad = [number for number, part in enumerate(parts) if not _decodes(part, device)]
        if len(bad) == len(parts) and any(_decodes(part, torch.device("cpu")) for part in parts):
            return ConfigError(
                f"none of {counted(len(parts), 'JPEG')} decodes on {device}, and a CPU decodes them: "
                f"{reason}; give data.decode='worker', or a torchvision with nvJPEG"
            )
        keys = list(dict.fromkeys(self.files[number].key for number in bad))
        return SampleError(f"{_named(keys)}: decode on {device} failed: {reason}")


def _named(keys: Sequence[str]) -> str:
    return f"sample {first_few([repr(key) for key in keys], 3, ', ')}"


def _decodes(part: Tensor, device: torch.device) -> bool:
    try:
        decode_jpeg([part], ImageReadMode.RGB, device)
    except RuntimeError:
        return False
    return True
