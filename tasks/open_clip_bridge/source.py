"""Source of open_clip's published weights. Importing this module does not import open_clip, which takes
seconds."""

from typing import Any

from pipeline.backbone.weights.sources import SOURCES
from tasks.open_clip_bridge.weights import OpenClipWeights


@SOURCES.register("open_clip")
class OpenClipSource:
    """Source of `open_clip:MODEL@TAG` and `open_clip:MODEL@FILE`."""

    def __init__(self) -> None:
        """It has no options."""

    def state_dict(self, where: str) -> OpenClipWeights:
        from tasks.open_clip_bridge.pretrained import read_pretrained

        return read_pretrained(where)

    def preprocessing(self, where: str) -> dict[str, Any]:
        from tasks.open_clip_bridge.pretrained import read_preprocessing

        return read_preprocessing(where)
