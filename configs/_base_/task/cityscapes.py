"""Cityscapes' 19 classes: crops of 768x768 out of 1024x2048 frames resized by 0.5 to 2; evaluation slides
such a window over the frame.

source     MMSegmentation's cityscapes_768x768.py: resize, crop, flip, photometric distortion and evaluation
differs    a window is cut before it is resized (the same up to half a stored pixel), masks are resized by
           their pixels' centres

Make the shards with `dtem shards make cityscapes PATH/TO/cityscapes data/cityscapes`. 1 image per GPU on 8
GPUs is the usual 8.
"""

tasks = dict(
    cityscapes=dict(
        type="segmentation",
        head=dict(num_classes=19, inference=dict(mode="slide", crop_size=768, stride=512)),
        data=dict(
            schema="segmentation",
            train="data/cityscapes",
            val="data/cityscapes",
            img_size=768,
            batch_size=1,
            eval_batch_size=1,
            workers=4,
            augment=dict(short_side=1024, photometric="mmseg", antialias=False, interpolation="bilinear"),
        ),
    )
)
