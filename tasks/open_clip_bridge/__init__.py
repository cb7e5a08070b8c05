"""The only package that imports open_clip: tokenizer, captioning parts, and weights. Importing it does not
import open_clip."""

from pipeline.backbone.weights.dialects import DIALECTS
from tasks.open_clip_bridge import source, tokenizer  # noqa: F401  (registration)
from tasks.open_clip_bridge.weights import open_clip_weights

DIALECTS["open_clip"] = open_clip_weights
