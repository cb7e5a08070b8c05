"""ADE20K's 150 classes: crops of 512x512 out of images resized by 0.5 to 2 from a shorter side of 512.

source     MMSegmentation's ade20k.py: resize, crop, flip, photometric distortion and evaluation
differs    a window is cut before it is resized (the same up to half a stored pixel), masks are resized by
           their pixels' centres, and pictures longer than four times their short side stay so

Make the shards with `dtem shards make ade20k PATH/TO/ADEChallengeData2016 data/ade20k`. 2 images per GPU on 8
GPUs are the usual 16.
"""

tasks = dict(
    ade20k=dict(
        type="segmentation",
        head=dict(num_classes=150),
        data=dict(
            schema="segmentation",
            train="data/ade20k",
            val="data/ade20k",
            img_size=512,
            batch_size=2,
            eval_batch_size=1,
            workers=4,
            augment=dict(short_side=512, photometric="mmseg", antialias=False, interpolation="bilinear"),
        ),
    )
)
