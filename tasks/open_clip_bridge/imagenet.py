"""Names and caption templates of ImageNet's 1,000 classes, as used to measure CLIP. Importing this module
imports open_clip, which takes seconds."""

from pipeline.extras import extra

with extra("captioning"):
    import open_clip

CLASS_NAMES: tuple[str, ...] = tuple(open_clip.IMAGENET_CLASSNAMES)
"""Names of the classes, in the order of the synsets' numbers."""
TEMPLATES: tuple[str, ...] = tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
"""Caption templates, with {} for the name."""
