"""Stored videos, by PyAV, whose wheels bring FFmpeg: the door to that package. T frames of H x W pixels.

A video is a stranger's. FFmpeg is told which container it is, by the suffix of the member, and has a short
list of containers and codecs and no protocol. So nothing that a video holds is opened beside it: no playlist,
no file, no address. What it may unfold to is limited.
"""

import io
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.members.mp4_tables import check_tables
from pipeline.errors import SampleError, counted
from pipeline.extras import extra

FORMS = {"mp4": "mp4", "m4v": "mp4", "mov": "mov", "webm": "webm", "mkv": "matroska", "avi": "avi"}
"""Maps the suffix of a member to FFmpeg's name of its container."""
OF_TABLES = ("mp4", "mov")
"""Containers whose tables `check_tables` reads."""
CODECS = ("h264", "hevc", "vp8", "vp9", "libdav1d", "av1", "mpeg4", "msmpeg4v3", "mjpeg", "ffv1")
"""FFmpeg's decoders that may be used."""
MAX_FRAME = 1 << 24
"""Pixels of the largest frame (4096 x 4096)."""
MAX_FRAMES = 1 << 16
"""Most frames of a video: 36 minutes at 30 a second."""
MAX_DECODED = 1 << 32
"""Most pixels that are decoded of a video for one sample: a minute and more of 1080p. To read a frame, those
before it are decoded too."""
_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi",
    "codec_whitelist": ",".join(CODECS),
    "protocol_whitelist": "none",
    "max_streams": "16",
    "max_pixels": str(MAX_FRAME),
}


class Video:
    """A stored video. num_frames: of its packets that are to be shown; the last of them may hold none, and
    then its last frame stands for them. Raises SampleError for what is no video."""

    def __init__(self, data: bytes, form: str):
        self._data, self._form = data, form
        if FORMS[form] in OF_TABLES:
            check_tables(data, form)
        with _opened(data, form) as (container, track):
            self.num_frames = _packets(container, track, form)
            self._size = f"{track.codec_context.width}x{track.codec_context.height}"

    def __str__(self) -> str:
        return f"{counted(self.num_frames, 'frame')} of {self._size} pixels"

    def frames(self, numbers: Sequence[int]) -> Iterator[Tensor]:
        """The frames of these numbers, which ascend: uint8 [3, H, W] each. Those before them are decoded, and
        no others. Raises SampleError."""
        wanted, frame = deque(numbers), None
        with _opened(self._data, self._form) as (container, track):
            for number, frame in enumerate(self._decoded(container, track) if wanted else ()):
                if number == wanted[0]:
                    yield _pixels(frame)
                    wanted.popleft()
                    if not wanted:
                        return
            if not wanted:
                return
            if frame is None:
                raise SampleError(f"{self._form} has no frame that decodes")
            last = _pixels(frame)
        yield from (last for _ in wanted)

    def _decoded(self, container: Any, track: Any) -> Iterator[Any]:
        first, pixels = None, 0
        for number, frame in enumerate(container.decode(track)):
            size = frame.height, frame.width
            first, pixels = first or size, pixels + frame.height * frame.width
            if frame.is_corrupt:
                raise SampleError(f"{self._form}: frame {number} is damaged")
            if size != first:
                raise SampleError(
                    f"{self._form}: frame {number} has {size[1]}x{size[0]} pixels and frame 0 "
                    f"{first[1]}x{first[0]}; store it in one size"
                )
            if pixels > MAX_DECODED:
                raise SampleError(
                    f"{self._form}: more than {MAX_DECODED} pixels up to frame {number}; cut it into shorter "
                    "clips"
                )
            yield frame


def encode_video(frames: NDArray[np.uint8], rate: int) -> bytes:
    """An mp4 (H.264) of frames uint8 [T, H, W, 3], H and W even; rate: of them a second. The same frames have
    nearly always the same bytes: once, on a busy machine, x264 chose others. Colours lose half of their
    detail."""
    with extra("video"):
        import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        track: Any = container.add_stream("libx264", rate=rate, options={"crf": "12", "threads": "1"})
        track.height, track.width = frames.shape[1:3]
        track.pix_fmt = "yuv420p"
        for picture in frames:
            container.mux(track.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(track.encode())
    return out.getvalue()


def check_video(data: bytes, form: str) -> None:
    """Decodes all of a video. Raises SampleError where it cannot be."""
    video = Video(data, form)
    for _ in video.frames(range(video.num_frames)):
        pass


@contextmanager
def _opened(data: bytes, form: str) -> Iterator[tuple[Any, Any]]:
    """The open container, and its first track of pictures. Raises SampleError, also for what FFmpeg says
    inside of the context."""
    with extra("video"):
        import av
        from av.error import FFmpegError

    try:
        file, how = io.BytesIO(data), {"options": dict(_OPTIONS), "metadata_errors": "replace"}
        with av.open(file, format=FORMS[form], **how) as container:
            track = _first_track(container)
            if track is None or track.codec_context is None:  # none of a codec that FFmpeg does not know
                raise SampleError(f"{form} holds no moving pictures that can be read")
            _check_codec(track.codec_context, form)
            yield container, track
    except (FFmpegError, ValueError, OverflowError) as err:
        raise SampleError(f"{form} does not decode: {getattr(err, 'strerror', None) or err}") from err


def _first_track(container: Any) -> Any:
    """The first track of pictures that is no cover of a record, which is one still picture."""
    return next(
        (own for own in container.streams.video if not own.disposition & own.disposition.attached_pic), None
    )


def _check_codec(codec: Any, form: str) -> None:
    """Refuses other codecs and sizes, and sets what a decoder may take."""
    if codec.name not in CODECS:
        raise SampleError(f"{form} has the codec {codec.name}, which is not read ({', '.join(CODECS)})")
    if (pixels := codec.width * codec.height) > MAX_FRAME:
        raise SampleError(
            f"{form}: video bomb: {codec.width}x{codec.height} are {pixels} pixels; the limit is {MAX_FRAME}"
        )
    codec.options = {"max_pixels": str(MAX_FRAME)}
    codec.thread_count = 1


def _packets(container: Any, track: Any, form: str) -> int:
    """The number of packets of the track that are to be shown, of which each holds a frame. What lies before
    the beginning that a file sets (an edit list) is decoded and not shown."""
    count = shown = 0
    for packet in islice(container.demux(track), MAX_FRAMES + 2):
        if packet.is_corrupt:
            raise SampleError(f"{form} is cut off behind frame {count}")
        count += bool(packet.size)
        shown += bool(packet.size) and not packet.is_discard
    if count > MAX_FRAMES:
        raise SampleError(f"{form} has more than {MAX_FRAMES} frames; cut it into shorter clips")
    if (count - shown) * track.codec_context.width * track.codec_context.height > MAX_DECODED:
        raise SampleError(
            f"{form} hides {count - shown} frames, which are decoded too; store it anew without"
        )
    if not shown:
        raise SampleError(f"{form} holds no frames")
    return shown


def _pixels(frame: Any) -> Tensor:
    """uint8 [3, H, W], with the colours of a pixel side by side. By this thread: FFmpeg would start some for
    each frame, in each worker."""
    return torch.from_numpy(frame.to_ndarray(format="rgb24", threads=1)).permute(2, 0, 1)
