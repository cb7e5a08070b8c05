"""What torch hub reads of a repository: a function for each model."""

from dinov3.hub.classifiers import dinov3_tiny_lc  # noqa: F401
from dinov3.models.vision_transformer import dinov3_tiny  # noqa: F401

dependencies = ["torch"]
