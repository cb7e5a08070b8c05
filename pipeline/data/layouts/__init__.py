"""How public data sets lay out images and masks: one reader each, found by this table."""

from collections.abc import Callable
from pathlib import Path

from pipeline.data.layouts.ade20k import read_ade20k
from pipeline.data.layouts.camvid import read_camvid
from pipeline.data.layouts.cityscapes import read_cityscapes
from pipeline.data.layouts.pascal import read_pascal
from pipeline.data.paired import Layout

LAYOUTS: dict[str, Callable[[Path], Layout]] = {
    "ade20k": read_ade20k,
    "cityscapes": read_cityscapes,
    "pascal": read_pascal,
    "camvid": read_camvid,
}
"""Each reader raises ConfigError where the tree is not there, SampleError for files that do not pair."""
