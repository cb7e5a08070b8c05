"""Task adapters: one file each, found by this list."""

from tasks import classification, segmentation  # noqa: F401  (registration)
