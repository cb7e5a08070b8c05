"""Which pixels are which digit's ink in a 64x64 scene. Make the shards with `dtem shards make digit_scenes
data/digits`.

A six must not become its mirror image, and most of a scene is ground: neither flips nor a limit of the
classes' shares.

source     none: this project's own
"""

tasks = dict(
    digits_segmentation=dict(
        type="segmentation",
        head=dict(num_classes=11),
        data=dict(
            schema="segmentation",
            train="data/digits",
            val="data/digits",
            img_size=64,
            batch_size=64,
            eval_batch_size=250,
            workers=1,
            augment=dict(
                resize_range=(0.75, 1.5),
                max_class_share=1.0,
                hflip=0.0,
                interpolation="bilinear",
                mean=(0.5, 0.5, 0.5),
                std=(0.25, 0.25, 0.25),
            ),
        ),
    )
)
