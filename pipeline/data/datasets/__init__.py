"""The dataset schemas, found by this list."""

from pipeline.data.datasets import captioning as captioning
from pipeline.data.datasets import classification as classification
from pipeline.data.datasets import segmentation as segmentation
