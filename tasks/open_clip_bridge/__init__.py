"""The door to open_clip: tokenizer, captioning parts, and weights in its keys. Importing this folder imports
none of it."""

from tasks.open_clip_bridge import tokenizer, weights  # noqa: F401  (registration)
