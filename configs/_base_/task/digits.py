"""Which digit is the largest in a 64x64 scene. Make the shards with `dtem shards make digit_scenes
data/digits`.

source     none: this project's own
"""

tasks = dict(
    digits=dict(
        type="classification",
        head=dict(num_classes=10),
        data=dict(
            schema="classification",
            train="data/digits",
            val="data/digits",
            img_size=64,
            batch_size=64,
            eval_batch_size=250,
            workers=1,
            augment=dict(
                crop_scale=(1.0, 1.0),
                hflip=0.0,
                crop_pct=1.0,
                interpolation="bilinear",
                mean=(0.5, 0.5, 0.5),
                std=(0.25, 0.25, 0.25),
            ),
        ),
    )
)
