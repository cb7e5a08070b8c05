"""PASCAL VOC 2012's 21 classes, background among them: crops of 512x512 out of images resized by 0.5 to 2
from a shorter side of 512.

source     MMSegmentation's pascal_voc12.py: resize, crop, flip, photometric distortion and evaluation
differs    a window is cut before it is resized (the same up to half a stored pixel), masks are resized by
           their pixels' centres

Make the shards with `dtem shards make pascal PATH/TO/VOCdevkit/VOC2012 data/pascal_voc`. 2 images per GPU on
8 GPUs are the usual 16.
"""

tasks = dict(
    pascal_voc=dict(
        type="segmentation",
        head=dict(num_classes=21),
        data=dict(
            schema="segmentation",
            train="data/pascal_voc",
            val="data/pascal_voc",
            img_size=512,
            batch_size=2,
            eval_batch_size=1,
            workers=4,
            augment=dict(short_side=512, photometric="mmseg", antialias=False, interpolation="bilinear"),
        ),
    )
)
