"""Task adapters: one file each, found by this list."""

from tasks import captioning, classification, multi_label, segmentation  # noqa: F401  (registration)
from tasks.open_clip_bridge import tokenizer  # noqa: F401  (registration)
