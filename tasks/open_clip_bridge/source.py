"""open_clip's published weights by name. Importing this module does not import open_clip, which takes
seconds."""

from typing import Any

from pipeline.backbone.weights.sources import SOURCES
from tasks.open_clip_bridge.weights import OpenClipWeights


@SOURCES.register("open_clip")
class OpenClipSource:
    """`open_clip:MODEL@TAG`, or `open_clip:MODEL@FILE`."""

    def __init__(self) -> None:
        """No options."""

    def state_dict(self, where: str) -> OpenClipWeights:
        from tasks.open_clip_bridge.pretrained import read_pretrained

        return read_pretrained(where)

    def preprocessing(self, where: str) -> dict[str, Any]:
        from tasks.open_clip_bridge.pretrained import read_preprocessing

        return read_preprocessing(where)
