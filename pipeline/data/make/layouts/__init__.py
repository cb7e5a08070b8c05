"""How public data sets lay out images, with masks or with captions: one reader each, found by these
tables."""

from collections.abc import Callable
from pathlib import Path

from pipeline.data.make.images_with_captions import Captioned
from pipeline.data.make.images_with_masks import Layout
from pipeline.data.make.layouts.ade20k import read_ade20k
from pipeline.data.make.layouts.camvid import read_camvid
from pipeline.data.make.layouts.captions_table import read_captions_table
from pipeline.data.make.layouts.cityscapes import read_cityscapes
from pipeline.data.make.layouts.coco_captions import read_coco_captions
from pipeline.data.make.layouts.pascal import read_pascal

LAYOUTS: dict[str, Callable[[Path], Layout]] = {
    "ade20k": read_ade20k,
    "cityscapes": read_cityscapes,
    "pascal": read_pascal,
    "camvid": read_camvid,
}
"""With masks. Each reader raises ConfigError where the tree is not there, SampleError for files that do not
pair."""

CAPTIONED: dict[str, Callable[[Path], dict[str, list[Captioned]]]] = {
    "coco_captions": read_coco_captions,
    "captions": read_captions_table,
}
"""With captions, by split. Each reader raises ConfigError where there is nothing to read, SampleError for
what cannot be used."""
