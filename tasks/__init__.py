"""Task adapters: one file each, found by this list."""

from tasks import (  # noqa: F401  (registration)
    captioning,
    classification,
    multi_label,
    segmentation,
    video_classification,
)
from tasks.open_clip_bridge import tokenizer  # noqa: F401  (registration)
