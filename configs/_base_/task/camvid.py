"""CamVid's 11 classes at its own 360x480: crops of 352x480, which patches of 16 divide, out of frames resized
by 0.5 to 2.

source     MMSegmentation's order: resize, crop, flip, colours
differs    colours by factors and smoothed resizes, as the records have it (`photometric="mmseg"`,
           `antialias=False` are MMSegmentation's); ImageNet's mean and std, whatever the backbone

Make the shards with `dtem shards make camvid PATH/TO/CamVid data/camvid` (SegNet's layout).
"""

tasks = dict(
    camvid=dict(
        type="segmentation",
        head=dict(num_classes=11),
        data=dict(
            schema="segmentation",
            train="data/camvid",
            val="data/camvid",
            img_size=(352, 480),
            batch_size=8,
            eval_batch_size=8,
            workers=1,
            augment=dict(
                photometric=True,
                interpolation="bilinear",
                mean=(0.485, 0.456, 0.406),
                std=(0.229, 0.224, 0.225),
            ),
        ),
    )
)
