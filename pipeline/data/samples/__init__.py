"""The dataset schemas, found by this list."""

from pipeline.data.samples import (  # noqa: F401  (registration)
    captioning,
    classification,
    multi_label,
    segmentation,
    video_classification,
)
