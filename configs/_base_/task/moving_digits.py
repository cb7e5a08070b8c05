"""How a digit moves over 8 frames of 32x32 pixels. Make the shards with `dtem shards make moving_digits
data/moving_digits`.

source     none: this project's own
"""

tasks = dict(
    moving_digits=dict(
        type="video_classification",
        head=dict(num_classes=9),
        data=dict(
            schema="video_classification",
            train="data/moving_digits",
            val="data/moving_digits",
            img_size=32,
            frames=8,
            batch_size=32,
            eval_batch_size=100,
            workers=1,
            augment=dict(
                crop_scale=(1.0, 1.0),
                hflip=0.0,  # left and right are classes
                crop_pct=1.0,
                interpolation="bilinear",
            ),
        ),
    )
)
