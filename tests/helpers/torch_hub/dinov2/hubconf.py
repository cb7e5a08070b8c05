"""What torch hub reads of a repository: a function for each model."""

from dinov2.hub.classifiers import dinov2_tiny_lc  # noqa: F401
from dinov2.models.vision_transformer import dinov2_tiny  # noqa: F401

dependencies = ["torch"]
