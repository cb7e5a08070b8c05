"""Names and captions of ImageNet's 1,000 classes, as CLIP was measured with. Importing it imports open_clip,
which takes seconds."""

from pipeline.extras import extra

with extra("captioning"):
    import open_clip

CLASS_NAMES: tuple[str, ...] = tuple(open_clip.IMAGENET_CLASSNAMES)
"""In the order of the synsets' numbers."""
TEMPLATES: tuple[str, ...] = tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
"""Captions with {} for the name."""
