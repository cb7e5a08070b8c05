"""The dataset schemas, found by this list."""

from pipeline.data.samples import captioning, classification, segmentation  # noqa: F401  (registration)
